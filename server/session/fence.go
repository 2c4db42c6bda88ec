//go:build !unfenced

package session

import "time"

// storeCommand writes a count, if the record is still there: the fence against
// an owner that does not know yet that another one has taken its session.
func storeCommand(key string, count uint64, lives time.Duration) []any {
	return []any{"SET", key, count, "XX", "PX", lives.Milliseconds()}
}
