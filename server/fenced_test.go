//go:build !unfenced

package main

const fenceIsBroken = false
