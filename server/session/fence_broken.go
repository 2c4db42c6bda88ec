//go:build unfenced

package session

// storeArgs lacks the fence, to show that the tests notice.
func storeArgs(key, count, millis any) []any { return []any{"SET", key, count, "PX", millis} }
