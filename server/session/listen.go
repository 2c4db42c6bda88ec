package session

import (
	"strconv"

	"github.com/redis/go-redis/v9"
)

// listen hears from other instances that leases of this one were taken over. It
// is a hint: what counts is what Redis says when the lease is looked at. Without
// it, a silent connection would only find out at its next renewal.
func (s *Redis) listen(client redis.UniversalClient) {
	sub := client.Subscribe(s.stopped, channel(s.instance))
	defer sub.Close()
	heard := sub.ChannelWithSubscriptions()
	for {
		select {
		case <-s.stopped.Done():
			return
		case message := <-heard:
			s.onHeard(message)
		}
	}
}

func (s *Redis) onHeard(message any) {
	switch message := message.(type) {
	case *redis.Subscription:
		s.verifyAll() // what was said before was not heard
	case *redis.Message:
		if serial, err := strconv.ParseUint(message.Payload, 10, 32); err == nil {
			s.takenHere(uint32(serial))
		}
	}
}
