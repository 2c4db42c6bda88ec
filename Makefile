# Every command of the project. `make` alone lists them.

GO      ?= go
PACKAGES = ./...
# Executions, not seconds: before Go 1.27 the end of a time may be reported as a
# failure (go.dev/issue/75804).
FUZZTIME ?= 100000x
FUZZ    ?= 0
CHAOS   ?= 300
ABUSE   ?= 60
BIN      = bin/server
BENCH    = bin/bench
TOOLS    = .cache/bin
REVISION ?= $(or $(shell git describe --always --dirty --abbrev=12 2>/dev/null),unknown)

# Static, so that the binary runs in an empty image and on any distribution.
export CGO_ENABLED ?= 0

.DEFAULT_GOAL := help

# The lines that begin with ##@ name the groups of the list.
.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {print $$1 "\t" $$2}' $(MAKEFILE_LIST) | \
		awk -F '\t' -v width=80 'NF < 2 {print; next} { \
			line = sprintf("  make %-16s", $$1); n = split($$2, word, " "); \
			for (i = 1; i <= n; i++) { \
				if (length(line " " word[i]) > width) {print line; line = sprintf("%23s", "")} \
				line = line " " word[i]} \
			print line}'

##@ Run

.PHONY: run
run: build ## Build and run it on port 8000: open http://localhost:8000/ (FLAGS="-workers 4" to add flags)
	./$(BIN) $(FLAGS)

.PHONY: build
build: ## Build bin/server
	$(GO) build -trimpath -ldflags '-X main.revision=$(REVISION)' -o $(BIN) ./server

.PHONY: build-bench
build-bench: build ## Build bin/bench, the load generator, too
	$(GO) build -trimpath -o $(BENCH) ./bench

RELEASE = bin/turnstile.tar.gz

.PHONY: release
release: build-bench ## Pack bin/turnstile.tar.gz: what a machine with systemd needs (deploy/README.md)
	tar -czf $(RELEASE) --owner=0 --group=0 $(BIN) $(BENCH) scripts deploy/nginx deploy/sysctl.conf deploy/turnstile@.service
	@echo $(RELEASE)

.PHONY: clean
clean: dev-down ## End the stack; remove what was built, downloaded, stored and measured
	rm -rf bin .cache .run bench/report

##@ Deploy: two colours behind nginx

.PHONY: setup
setup: ## Install what the stack needs, or say what is missing: redis-server, nginx, curl
	@scripts/setup.sh

.PHONY: dev-up
dev-up: ## Start the whole stack: Redis, a colour, nginx on port 8080, and what watches them
	@scripts/dev-up.sh

.PHONY: promote
promote: ## Build and start the other colour, test it, lead clients to it, hand over the live ones
	@scripts/promote.sh

.PHONY: promote-blue
promote-blue: ## Promote blue
	@scripts/promote.sh blue

.PHONY: promote-green
promote-green: ## Promote green
	@scripts/promote.sh green

.PHONY: smoke-test
smoke-test: ## Test the running stack as a client does
	@scripts/smoke.sh

.PHONY: dev-down
dev-down: ## End what dev-up has started
	@scripts/dev-down.sh

##@ Watch

.PHONY: monitor
monitor: ## Watch both colours in the terminal: connections, rates, latency, errors
	@scripts/monitor.sh

.PHONY: monitor-30
monitor-30: ## The same for 30 seconds
	@scripts/monitor.sh 30

.PHONY: logs
logs: ## Show what the stack says, until ^C (SERVICE=blue: one part of it)
	@scripts/logs.sh $(SERVICE)

.PHONY: metrics
metrics: ## Print the metrics of the colours that run (TEXT=active: the lines with it)
	@scripts/metrics.sh $(if $(TEXT),"$(TEXT)")

##@ Test

.PHONY: test
test: deps check race plain test-integration unfenced browser ## Install what the tests need and run all of them

.PHONY: deps
deps: ## Install what the tests need: Redis, nginx, Chromium and more from Debian, foreign WebSocket clients
	@scripts/test-deps.sh

# What is copied from elsewhere keeps its long lines.
UNWRAPPED = ':!server/admin/uplot'

.PHONY: check
check: ## Check formatting and the length of lines, and run go vet
	@files=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$files" ]; then echo "not formatted, run gofmt -w: $$files"; exit 1; fi
	@git ls-files -z -- '*.go' '*.js' '*.mjs' '*.sh' $(UNWRAPPED) | xargs -0 awk 'length > 140 {print FILENAME ":" FNR ": longer than 140 columns, wrap it"; bad = 1} END {exit bad}'
	$(GO) vet $(PACKAGES)

.PHONY: lint
lint: check tools ## go vet, staticcheck, shellcheck
	$(TOOLS)/staticcheck $(PACKAGES)
	cd deploy && ../$(TOOLS)/staticcheck ./...
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run scripts/*.sh bench/peers/*.sh; else echo "shellcheck is not installed: scripts are not checked"; fi

.PHONY: race
race: ## Run the tests under the race detector
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 20m $(PACKAGES)

.PHONY: plain
plain: ## Run the tests as built for production: allocations, 10,000 clients (but not again those that wait for Redis or a death)
	$(GO) test -count=1 -timeout 20m -skip 'Redis|TestChaos|Dies|./redis' $(PACKAGES)

# A Docker engine of the tests' own is for root. Without one, they say so.
COMPOSE_PLUGIN = $(if $(shell [ "$$(id -u)" = 0 ] && PATH=$$PATH:/usr/sbin command -v dockerd),compose-plugin)

.PHONY: test-compose
test-compose: stack-tools $(COMPOSE_PLUGIN) ## Test the stack as containers, on a Docker engine of its own (as root)
	cd deploy && $(GO) test -v -count=1 -timeout 20m -run 'TestEngine|TestContainers' .

.PHONY: test-integration
test-integration: stack-tools test-compose ## Test deploy/ and scripts/ with the real programs: promotions under load, alerts, logs
	cd deploy && $(GO) vet ./... && $(GO) test -v -count=1 -timeout 30m -skip 'TestEngine|TestContainers' ./... # -v: it tells how long the pauses were

.PHONY: browser
browser: build ## Try the console in a real browser, and its client module under Node
	@if command -v node >/dev/null; then node --test --test-reporter=spec server/admin/browsertest/*.test.mjs; \
	else echo "node is not installed: the console is not tried; see make deps"; test "$$CI" != true; fi

.PHONY: unfenced
unfenced: ## See that the chaos test notices when commits do not look who owns the session
	$(GO) test -count=1 -tags unfenced -run TestChaos/single -v ./server

# It finds something else each time, so it is no part of make test, which runs the inputs
# that have been found.
.PHONY: fuzz
fuzz: ## Fuzz each target for 100,000 executions (FUZZ=3600: again and again for an hour each)
	@for file in $$(git grep -l 'func Fuzz' -- '*_test.go'); do \
		for target in $$(grep -o 'func Fuzz[A-Za-z]*' $$file | cut -c6-); do \
			end=$$(($$(date +%s) + $(FUZZ))); \
			while $(GO) test ./$$(dirname $$file) -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s || exit 1; \
				[ $$(date +%s) -lt $$end ]; do :; done; done; done

.PHONY: chaos
chaos: ## Harm servers and Redis in all ways for CHAOS seconds (300) each: single, TLS, cluster, sentinel
	TURNSTILE_CHAOS_SECONDS=$(CHAOS) $(GO) test -count=1 -timeout 0 -run TestChaos -v ./server

.PHONY: abuse
abuse: ## Attack one server in all ways at once for ABUSE seconds (60): its honest clients may wait twice as long as those of one beside
	TURNSTILE_ABUSE_SECONDS=$(ABUSE) $(GO) test -count=1 -timeout 0 -run 'TestAbuse$$' -v ./server

CLIENTS  ?= 10000
COMPRESS ?= 0
BUSY     ?= 0
.PHONY: handover-10k
handover-10k: ## Ten live handovers of 10,000 connections through nginx, all of which send: nobody may notice (CLIENTS=19000; COMPRESS=1: all is compressed; BUSY=1: other programs keep the processors busy; FROM=COMMIT: over a server of it)
	cd deploy && TURNSTILE_HANDOVER_CLIENTS=$(CLIENTS) TURNSTILE_HANDOVER_TIMES=10 TURNSTILE_HANDOVER_FROM=$(FROM) \
		TURNSTILE_HANDOVER_COMPRESS=$(COMPRESS) TURNSTILE_HANDOVER_BUSY=$(BUSY) $(GO) test -count=1 -timeout 20m -run 'TestHandover$$' -v .

.PHONY: test-peers
test-peers: ## Build the servers of bench/peers and see that they do the same job
	bench/peers/build.sh
	cd bench/peers && $(GO) vet ./... && $(GO) test -count=1 ./...

.PHONY: tools
tools:
	@mkdir -p $(TOOLS)
	cd deploy/tools && $(GO) build -o ../../$(TOOLS)/ golang.org/x/perf/cmd/benchstat honnef.co/go/tools/cmd/staticcheck

VICTORIA = github.com/VictoriaMetrics

.PHONY: stack-tools
stack-tools: ## Build VictoriaMetrics, vmalert, VictoriaLogs and vlagent into .cache/bin (minutes, the first time)
	@mkdir -p $(TOOLS)
	cd deploy/tools && $(GO) build -trimpath -o ../../$(TOOLS)/ \
		$(VICTORIA)/VictoriaMetrics/app/victoria-metrics $(VICTORIA)/VictoriaMetrics/app/vmalert $(VICTORIA)/VictoriaMetrics/app/vmalert-tool \
		$(VICTORIA)/VictoriaLogs/app/victoria-logs $(VICTORIA)/VictoriaLogs/app/vlagent

.PHONY: compose-plugin
compose-plugin: ## Build Docker's compose plugin into .cache/bin (minutes, the first time)
	@mkdir -p $(TOOLS)
	cd deploy/tools/compose && $(GO) build -trimpath -ldflags '-s -w' -o ../../../$(TOOLS)/docker-compose github.com/docker/compose/v2/cmd

##@ Measure

# The server as it is measured: its log says what is wrong and no more.
MEASURED = 'bin/server -listen {listen} -log-level warn

.PHONY: load-test
load-test: build-bench ## 100 connections for a minute: closed loop, then 2,000 messages a second
	$(BENCH) -server $(MEASURED)' -conns 100 -duration 30s -out bench/report/load-test connect echo rate

.PHONY: load-test-5k
load-test-5k: build-bench ## The same with 5,000 connections
	$(BENCH) -server $(MEASURED)' -conns 5000 -duration 30s -out bench/report/load-test-5k connect echo rate

.PHONY: load-test-10k
load-test-10k: build-bench ## The same with 10,000 connections
	$(BENCH) -server $(MEASURED)' -conns 10000 -duration 30s -out bench/report/load-test-10k connect echo rate

# Heartbeats have a run of their own: they would be counted as messages' work.
.PHONY: bench-10k
bench-10k: build-bench ## Hold the server to its targets with 10,000 connections: tables, and pages in bench/report/
	@code=0; \
	$(BENCH) -name Turnstile -server $(MEASURED) -heartbeat 1h' -conns 10000 -rate 10000 -duration 15s -targets -out bench/report connect idle sparse rate echo || code=$$?; \
	$(BENCH) -name 'Turnstile, heartbeats' -server $(MEASURED) -heartbeat 5s' -conns 10000 -duration 15s -targets -out bench/report/heartbeat connect heartbeat || code=$$?; \
	exit $$code

.PHONY: bench-peers
bench-peers: build-bench ## The same job on other servers, side by side: a table, and bench/report/peers.html (20 minutes)
	bench/peers/build.sh
	$(BENCH) peers

.PHONY: bench
bench: ## Run the benchmarks: messages, idle memory, upgrade, parser, wheel, embedded store
	$(GO) test -run '^$$' -bench . -benchtime 300ms ./proto ./netpoll ./server/session
	$(GO) test -run '^$$' -bench 'Idle' -benchtime 3x ./server
	$(GO) test -run '^$$' -bench 'Messages' -benchtime 300000x -count 3 ./server

.PHONY: benchstat
benchstat: tools ## Compare two outputs of make bench: OLD=old.txt NEW=new.txt
	$(TOOLS)/benchstat $(OLD) $(NEW)

.PHONY: bench-redis
bench-redis: ## Compare Redis with the embedded store: messages, latency at a fixed rate, resume of 10,000
	$(GO) test -run '^$$' -bench Stores -benchtime 300000x -count 3 ./server
	$(GO) test -run '^$$' -bench RedisRate -benchtime 20000x ./server
	$(GO) test -run '^$$' -bench RedisResume -benchtime 3x ./server

##@ Write anew

.PHONY: readme
readme: ## Write the table of flags in README.md anew from config.go
	UPDATE_README=1 $(GO) test -count=1 -run TestReadmeHasTheFlags ./server

.PHONY: observability
observability: ## Write the tables of deploy/OBSERVABILITY.md and vmui's dashboards anew
	cd deploy && UPDATE_OBSERVABILITY=1 $(GO) test -count=1 -run 'TestDocumentTables|TestVMUIDashboards' .
