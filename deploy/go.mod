// The tests of what deploy/ and scripts/ hold, in a module of their own so that
// what they need never reaches the server's.
module turnstile/deploy

go 1.26.0

require (
	github.com/VictoriaMetrics/metricsql v0.87.3
	go.yaml.in/yaml/v3 v3.0.6
)

require (
	github.com/gobwas/httphead v0.1.0 // indirect
	github.com/gobwas/ws v1.5.0 // indirect
)

require (
	github.com/VictoriaMetrics/metrics v1.44.0 // indirect
	github.com/valyala/fastrand v1.1.0 // indirect
	github.com/valyala/histogram v1.2.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	turnstile v0.0.0
)

replace turnstile => ..
