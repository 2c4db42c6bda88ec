//go:build !gosched

package netpoll

import _ "unsafe" // for linkname

// yield puts the goroutine at the end of its processor's queue.
//
// easygo waits by a blocking epoll_wait(2), of which Go's scheduler learns only that
// a goroutine stays in system calls. When one has done so for 10 ms, the monitor
// thread (runtime.sysmon) takes the processor away in each call, some thousand times
// a second, and the loop has to get it back: half of the CPU of sparse traffic. To be
// scheduled once ends that (runtime/proc.go, retake: schedtick), for 10 ms.
//
// runtime.Gosched does it too, but wakes another thread each time, and moves the loop
// between threads: build with -tags gosched for a Go that has no goyield.
//
//go:linkname yield runtime.goyield
func yield()
