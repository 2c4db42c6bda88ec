package session

import (
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// listen receives hints from other processes: a lease of this one has lost its
// session. What counts is what Redis says when the lease is verified. Without
// the hint, a silent connection would only find out at its next renewal.
//
// A lease that came from another process keeps its token, and with it that
// process's channel.
func (s *Redis) listen(client redis.UniversalClient) {
	sub := client.Subscribe(s.stopped, channel(s.instance))
	defer sub.Close()
	received := sub.ChannelWithSubscriptions()
	for {
		select {
		case <-s.stopped.Done():
			return
		case <-s.subscribe:
			sub.Subscribe(s.stopped, s.newChannels()...) // if it fails, the client subscribes when it connects again
		case message := <-received:
			s.onReceived(message)
		}
	}
}

// listenTo has listen subscribe to the channel of another process as well. Under
// mu.
func (s *Redis) listenTo(instance uint32) {
	if s.instances[instance] {
		return
	}
	s.instances[instance] = true
	s.unsubscribed = append(s.unsubscribed, instance)
	select {
	case s.subscribe <- struct{}{}:
	default:
	}
}

// newChannels are those that are not subscribed to yet.
func (s *Redis) newChannels() (channels []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, instance := range s.unsubscribed {
		channels = append(channels, channel(instance))
	}
	s.unsubscribed = nil
	return channels
}

func (s *Redis) onReceived(message any) {
	switch message := message.(type) {
	case *redis.Subscription:
		s.verifyAll() // hints that were published before were not received
	case *redis.Message:
		name := strings.TrimPrefix(message.Channel, channelPrefix)
		instance, err := strconv.ParseUint(name, 16, 32)
		if err != nil {
			return
		}
		if serial, err := strconv.ParseUint(message.Payload, 10, 32); err == nil {
			s.onHint(leaseID{uint32(instance), uint32(serial)})
		}
	}
}
