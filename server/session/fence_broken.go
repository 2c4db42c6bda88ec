//go:build unfenced

package session

import "time"

// storeCommand without the fence: for seeing that the tests notice.
func storeCommand(key string, count uint64, lives time.Duration) []any {
	return []any{"SET", key, count, "PX", lives.Milliseconds()}
}
