package session

import (
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// A session is two keys, of one hash slot:
//
//	turnstile:{ID}          the token of the owner
//	turnstile:{ID}:TOKEN    the count, written by that owner alone
//
// A commit is SET … XX on the owner's record. A claim replaces the owner and
// deletes its record, so whatever the older owner still sends finds nothing.

const keyPrefix = "turnstile:{"

func ownerKey(id ID) string {
	text := id.Text()
	return keyPrefix + string(text[:]) + "}"
}

func recordKey(id ID, token string) string {
	return string(append(appendRecordPrefix(make([]byte, 0, 96), id), token...))
}

// appendRecordKey appends recordKey(id, t.String()).
func appendRecordKey(buf []byte, id ID, t token) []byte {
	return t.append(appendRecordPrefix(buf, id))
}

// appendRecordPrefix appends what stands before the token in the key of a record.
func appendRecordPrefix(buf []byte, id ID) []byte {
	text := id.Text()
	return append(append(append(buf, keyPrefix...), text[:]...), "}:"...)
}

// A token names a lease to all processes. Attempt counts up whenever the answer
// to a command does not come: Redis may carry that command out later, and under
// the older token it does no harm.
type token struct {
	epoch   uint64 // microseconds since 1970, and more than that of the owner before
	lease   leaseID
	attempt uint32
}

// A leaseID is one lease of one process.
type leaseID struct {
	instance uint32 // the process, at random
	serial   uint32
}

// String is EPOCH.INSTANCE-SERIAL.ATTEMPT, each in base 16.
func (t token) String() string { return string(t.append(make([]byte, 0, 48))) }

func (t token) append(buf []byte) []byte {
	buf = strconv.AppendUint(buf, t.epoch, 16)
	buf = strconv.AppendUint(append(buf, '.'), uint64(t.lease.instance), 16)
	buf = strconv.AppendUint(append(buf, '-'), uint64(t.lease.serial), 16)
	return strconv.AppendUint(append(buf, '.'), uint64(t.attempt), 16)
}

// parseToken reads what String writes; what is no token is the zero token,
// which is older than any.
func parseToken(text string) token {
	epoch, rest, _ := strings.Cut(text, ".")
	lease, attempt, _ := strings.Cut(rest, ".")
	instance, serial, _ := strings.Cut(lease, "-")
	var numbers [4]uint64
	for i, digits := range []string{epoch, instance, serial, attempt} {
		bits := 32
		if i == 0 {
			bits = 64
		}
		n, err := strconv.ParseUint(digits, 16, bits)
		if err != nil {
			return token{}
		}
		numbers[i] = n
	}
	return token{numbers[0], leaseID{uint32(numbers[1]), uint32(numbers[2])}, uint32(numbers[3])}
}

// channel is where an instance receives hints that one of its leases has lost its
// session; the message is the serial.
func channel(instance uint32) string {
	return channelPrefix + strconv.FormatUint(uint64(instance), 16)
}

const channelPrefix = "turnstile:instance:"

// own makes the caller the owner, if the owner is still the one it expects, or
// there is none.
//
//	KEYS  the owner, the expected owner's record (if one is expected that is
//	      not the caller), the caller's record (see below)
//	ARGV  the caller's token, the expected owner's token (or ''),
//	      the count (or '': that of the expected owner, else 0),
//	      how long the record and the owner live, in milliseconds,
//	      and the two records again (the first or '')
//
// It returns {1, count, whether the session was known}, or {0, the owner} and
// changes nothing, also if the owner whose count it is to take over is gone. It
// changes nothing either, and returns an error, if that owner's record has no
// count: whoever has written it knows better.
//
// The keys are declared as Redis Cluster wants it, but for the caller's record
// while the slot moves to another node: a declared key that is nowhere yet would
// make both nodes refuse (TRYAGAIN). The node that gives the slot away refuses
// to write the caller's record, so the script writes that first. The owner comes last:
// if the user may not delete, the expected owner must not be replaced beside its record.
const own = `
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[2] then
	return {0, owner}
end
if not owner and ARGV[2] ~= '' and ARGV[3] == '' then
	return {0, false}
end
local stored = false
if owner then
	stored = redis.call('GET', ARGV[6] ~= '' and ARGV[6] or ARGV[7])
end
local count = ARGV[3]
if count == '' then
	count = stored or '0'
	if not string.find(count, '^%d+$') or #count > 18 then
		return redis.error_reply('DAMAGED the record of ' .. owner .. ' is not a count')
	end
end
redis.call('SET', ARGV[7], count, 'PX', ARGV[4])
if ARGV[6] ~= '' then
	redis.call('DEL', ARGV[6])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[5])
return {1, count, stored and 1 or 0}
`

var ownScript = redis.NewScript(own)

// slots is how many there are (Redis Cluster specification).
const slots = 1 << 14

// slotOf is the hash slot of a session's keys: CRC-16/XMODEM of what stands in
// braces.
func slotOf(id ID) uint16 {
	text := id.Text()
	return crc16(text[:]) % slots
}

func crc16(text []byte) (crc uint16) {
	for _, b := range text {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

// probeKey is a key of the given slot that only says that writing works.
func probeKey(slot uint16) string {
	for n := 0; ; n++ {
		tag := strconv.Itoa(n)
		if crc16([]byte(tag))%slots == slot {
			return keyPrefix + tag + "}:probe"
		}
	}
}
