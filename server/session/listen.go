package session

import (
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// listen hears from other instances that leases held here were taken over. It
// is a hint: what counts is what Redis says when the lease is looked at. Without
// it, a silent connection would only find out at its next renewal.
//
// A lease that came from another process keeps its token, so it is spoken to by
// that process's name.
func (s *Redis) listen(client redis.UniversalClient) {
	sub := client.Subscribe(s.stopped, channel(s.instance))
	defer sub.Close()
	heard := sub.ChannelWithSubscriptions()
	for {
		select {
		case <-s.stopped.Done():
			return
		case <-s.moreNames:
			sub.Subscribe(s.stopped, s.newChannels()...) // one that fails is made good when it connects again
		case message := <-heard:
			s.onHeard(message)
		}
	}
}

// hear has listen listen to the name of another process as well. Under mu.
func (s *Redis) hear(instance uint32) {
	if s.names[instance] {
		return
	}
	s.names[instance] = true
	s.unheard = append(s.unheard, instance)
	select {
	case s.moreNames <- struct{}{}:
	default:
	}
}

// newChannels are those of the names that are not listened to yet.
func (s *Redis) newChannels() (channels []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, instance := range s.unheard {
		channels = append(channels, channel(instance))
	}
	s.unheard = nil
	return channels
}

func (s *Redis) onHeard(message any) {
	switch message := message.(type) {
	case *redis.Subscription:
		s.verifyAll() // what was said before was not heard
	case *redis.Message:
		name := strings.TrimPrefix(message.Channel, channelPrefix)
		instance, err := strconv.ParseUint(name, 16, 32)
		if err != nil {
			return
		}
		if serial, err := strconv.ParseUint(message.Payload, 10, 32); err == nil {
			s.taken(holderID{uint32(instance), uint32(serial)})
		}
	}
}
