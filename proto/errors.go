package proto

import "github.com/gobwas/ws"

// An Error is a violation of the protocol, or of a limit, by the peer. The
// connection is failed with its Code (RFC 6455 §7.1.7).
type Error struct {
	Code ws.StatusCode
	Text string // what was wrong, in a few words: the reason of the close frame
}

func (e *Error) Error() string { return e.Text }

// The errors of the parser. They are compared by identity.
var (
	ErrReservedBits     = &Error{ws.StatusProtocolError, "reserved bits set"}                        // §5.2
	ErrReservedOpCode   = &Error{ws.StatusProtocolError, "reserved opcode"}                          // §5.2
	ErrControlFragment  = &Error{ws.StatusProtocolError, "fragmented control frame"}                 // §5.5
	ErrControlTooLong   = &Error{ws.StatusProtocolError, "control frame over 125 bytes"}             // §5.5
	ErrNotMasked        = &Error{ws.StatusProtocolError, "frame from a client not masked"}           // §5.1
	ErrMasked           = &Error{ws.StatusProtocolError, "frame from a server masked"}               // §5.1
	ErrLengthNotMinimal = &Error{ws.StatusProtocolError, "payload length not in its shortest form"}  // §5.2
	ErrLengthTooLong    = &Error{ws.StatusProtocolError, "payload length over 63 bits"}              // §5.2
	ErrNoFragment       = &Error{ws.StatusProtocolError, "continuation frame without a message"}     // §5.4
	ErrFragmentOpen     = &Error{ws.StatusProtocolError, "new message within a fragmented one"}      // §5.4
	ErrClosePayload     = &Error{ws.StatusProtocolError, "close frame with a payload of one byte"}   // §5.5.1
	ErrCloseCode        = &Error{ws.StatusProtocolError, "close code that must not be sent"}         // §7.4
	ErrNotUTF8          = &Error{ws.StatusInvalidFramePayloadData, "text is not UTF-8"}              // §8.1
	ErrNotDeflate       = &Error{ws.StatusInvalidFramePayloadData, "message does not inflate"}       // RFC 7692 §7.2.2
	ErrTooBig           = &Error{ws.StatusMessageTooBig, "message too big"}                          // §10.4
	ErrCloseReason      = &Error{ws.StatusInvalidFramePayloadData, "reason of a close is not UTF-8"} // §5.5.1
)
