package oracle

import (
	"bytes"
	"compress/flate"
	"io"
	"strings"
	"sync"

	"turnstile/proto"
)

// This file is what a client does that has agreed on compression (RFC 7692). Its messages are
// compressed by the standard library, and not by what the server has.

// padding makes a message so long that its answer is worth compressing.
var padding = strings.Repeat(" and so on", 20)

const flushTail = "\x00\x00\xff\xff" // the end of what a flush gives, without which a message goes (§7.2.1)

// What compresses has much memory, and many clients share it.
var (
	deflaters = sync.Pool{New: func() any {
		w, _ := flate.NewWriter(nil, flate.BestSpeed) // it refuses only levels
		return w
	}}
	inflaters = sync.Pool{New: func() any { return &proto.Inflater{} }}
)

// offerCompression adds an offer to a request.
func offerCompression(request []byte) []byte {
	return append(bytes.TrimSuffix(request, []byte("\r\n")), "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"...)
}

// agreesOnCompression reports whether the server's answer takes the offer, as it does: no
// message depends on those before.
func agreesOnCompression(header []byte) bool {
	const agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	return bytes.Contains(header, []byte("\r\nSec-WebSocket-Extensions: "+agreed+"\r\n"))
}

// appendCompressed appends a message as a client sends it, compressed by itself.
func appendCompressed(dst []byte, message string) []byte {
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	var payload bytes.Buffer
	w.Reset(&payload)
	io.WriteString(w, message)
	w.Flush()
	from := len(dst)
	dst = proto.AppendMaskedFrame(dst, proto.OpText, true, mask, bytes.TrimSuffix(payload.Bytes(), []byte(flushTail)))
	dst[from] |= 0x40 // RSV1: it is compressed (§6)
	return dst
}
