//go:build unfenced

package session

import "time"

// storeCommand lacks the fence, to show that the tests notice.
func storeCommand(key string, count uint64, lives time.Duration) []any {
	return []any{"SET", key, count, "PX", lives.Milliseconds()}
}
