//go:build gosched

package netpoll

import "runtime"

// yield lets other goroutines run: see yield.go for why.
func yield() { runtime.Gosched() }
