//go:build !unfenced

package session

// storeArgs writes a count, if the record is still there: the fence against an owner that
// does not know yet that another one has taken its session.
func storeArgs(key, count, millis any) []any { return []any{"SET", key, count, "XX", "PX", millis} }
