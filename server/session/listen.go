package session

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// listenCheck is after how long a silence the subscription's connection is tried.
	listenCheck = 3 * time.Second
	listenPause = 100 * time.Millisecond // before the next subscription
)

// listen receives hints from other processes: a lease of this one has lost its
// session. What counts is what Redis says when the lease is verified. Without
// the hint, a silent connection would only find out at its next renewal.
//
// A lost connection is made again, and the store stays available: the fence does not
// depend on hints. What Redis refuses to subscribe does not come right by itself, so
// then the store is not available.
func (s *Redis) listen(client redis.UniversalClient) {
	for s.stopped.Err() == nil {
		var refusal redis.Error
		if err := s.receiveHints(client); errors.As(err, &refusal) {
			s.listening.onTrouble(fmt.Errorf("SUBSCRIBE: %w", err))
		}
		select {
		case <-s.stopped.Done():
		case <-time.After(listenPause):
		}
	}
}

// receiveHints subscribes, and receives until something fails.
func (s *Redis) receiveHints(client redis.UniversalClient) error {
	subscribed := make(map[uint32]bool)
	sub := client.Subscribe(s.stopped, s.newChannels(subscribed)...)
	failed := make(chan struct{})
	s.start(func() { s.subscribeMore(sub, subscribed, failed) })
	defer close(failed)
	for quiet := false; ; {
		message, err := sub.ReceiveTimeout(s.stopped, cmp.Or(s.config.listenCheck, listenCheck))
		switch {
		case err == nil:
			quiet = false
			s.onReceived(message)
		case errorKindOf(err) == errorDisk:
			quiet = false // it answers a ping so while its disk is full; the nodes' probes tell of that
		case quiet || errorKindOf(err) != errorTimeout:
			return err
		default:
			quiet = true
			if err := sub.Ping(s.stopped); err != nil {
				return err
			}
		}
	}
}

// subscribeMore adds what comes to s.instances, until the subscription fails. It closes
// the subscription, which also ends a read from it.
func (s *Redis) subscribeMore(sub *redis.PubSub, subscribed map[uint32]bool, failed <-chan struct{}) {
	defer sub.Close()
	for {
		select {
		case <-s.stopped.Done():
			return
		case <-failed:
			return
		case <-s.subscribe:
			sub.Subscribe(s.stopped, s.newChannels(subscribed)...) // if it fails, so does the read
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
	select {
	case s.subscribe <- struct{}{}:
	default:
	}
}

// newChannels are those of s.instances that are not in subscribed, to which it adds them.
func (s *Redis) newChannels(subscribed map[uint32]bool) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for instance := range s.instances {
		if !subscribed[instance] {
			subscribed[instance] = true
			names = append(names, channel(instance))
		}
	}
	return names
}

func (s *Redis) onReceived(message any) {
	switch message := message.(type) {
	case *redis.Subscription:
		s.verifyAll() // hints that were published before were not received
		s.listening.onSuccess()
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
