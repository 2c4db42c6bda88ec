package redistest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A Cluster is a Redis Cluster.
type Cluster struct {
	Nodes []*Server
	// URL is for -redis: all nodes.
	URL string
}

const slots = 1 << 14

// StartCluster runs a Redis Cluster of n masters, and waits until each knows
// the others.
func StartCluster(t testing.TB, n int, options ...string) *Cluster {
	t.Helper()
	c := &Cluster{}
	var urls, buses []string
	for range n {
		bus := port(reserveAddr(t)) // by default Redis takes the port plus 10,000, which may be anybody's
		options := append([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-announce-ip", Host,
			"--cluster-port", bus}, options...)
		s := Start(t, options...)
		c.Nodes, buses = append(c.Nodes, s), append(buses, bus)
		urls = append(urls, "redis://"+s.Addr)
	}
	c.URL = strings.Join(urls, ",")
	for i, s := range c.Nodes {
		s.Do("CLUSTER", "ADDSLOTSRANGE", i*slots/n, (i+1)*slots/n-1)
		s.Do("CLUSTER", "SET-CONFIG-EPOCH", i+1)
		s.Do("CLUSTER", "MEET", Host, port(c.Nodes[0].Addr), buses[0])
	}
	for _, s := range c.Nodes {
		s.Until("the cluster agrees", func() bool {
			info := fmt.Sprint(s.Do("CLUSTER", "INFO"))
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", n))
		})
	}
	return c
}

// A Guarded is a master with replicas, which sentinels watch.
type Guarded struct {
	Master    *Server
	Replicas  []*Server
	Sentinels []*Server
	// URL is for -redis: the sentinels.
	URL string
}

// StartGuarded runs a master with the given number of replicas, and three
// sentinels that make one of them the master when it dies.
func StartGuarded(t testing.TB, replicas int, options ...string) *Guarded {
	t.Helper()
	g := &Guarded{Master: Start(t, options...)}
	for range replicas {
		follow := append([]string{"--replicaof", Host + " " + port(g.Master.Addr)}, options...)
		g.Replicas = append(g.Replicas, Start(t, follow...))
	}
	var addrs []string
	for range 3 {
		s := startSentinel(t, g.Master)
		g.Sentinels = append(g.Sentinels, s)
		addrs = append(addrs, s.Addr)
	}
	for _, s := range g.Sentinels {
		s.Until("the sentinel knows all others", func() bool {
			info := fmt.Sprint(s.Do("SENTINEL", "MASTER", masterName))
			return strings.Contains(info, "num-other-sentinels 2") && strings.Contains(info, fmt.Sprintf("num-slaves %d", replicas))
		})
	}
	g.URL = "redis://" + strings.Join(addrs, ",") + "?master_name=" + masterName
	return g
}

const masterName = "sessions"

func startSentinel(t testing.TB, master *Server) *Server {
	t.Helper()
	s := newServer(t)
	config := fmt.Sprintf("port %s\nbind %s\ndir %s\nsentinel announce-ip %s\nsentinel monitor %s %s %s 2\n",
		port(s.Addr), Host, s.dir, Host, masterName, Host, port(master.Addr))
	config += fmt.Sprintf("sentinel down-after-milliseconds %[1]s 1000\nsentinel failover-timeout %[1]s 3000\n", masterName)
	path := filepath.Join(s.dir, "sentinel.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.args = []string{path, "--sentinel"}
	s.Restart()
	return s
}

// CurrentMaster is the server that the sentinels call the master.
func (g *Guarded) CurrentMaster() *Server {
	answer, _ := g.Sentinels[0].Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", masterName).([]any)
	for _, s := range append([]*Server{g.Master}, g.Replicas...) {
		if len(answer) == 2 && s.Addr == fmt.Sprint(answer[0], ":", answer[1]) {
			return s
		}
	}
	g.Master.t.Fatalf("no server is the master %v", answer)
	return nil
}

// WaitForAnotherMaster waits until a failover from old is over. On a busy machine sentinels
// may ask for votes all at once, again and again. So after a while one is told to go ahead,
// as an operator would tell it.
func (g *Guarded) WaitForAnotherMaster(old *Server) {
	g.Master.t.Helper()
	asked := time.Now()
	until(g.Master.t, failoverPatience, "there is another master", g.Sentinels[0].dir, func() bool {
		if time.Since(asked) > electionPatience {
			asked = time.Now()
			g.Sentinels[0].Client.Do(context.Background(), "SENTINEL", "FAILOVER", masterName) // refused while one is under way
		}
		return g.CurrentMaster() != old
	})
}

// failoverPatience is how long a failover may take. A sentinel whose timer comes late by two
// seconds does nothing for 30 (its log says +tilt), and on a busy machine that happens again
// and again.
const failoverPatience = 10 * time.Minute

// electionPatience is how long an election may take: some rounds of it.
const electionPatience = 15 * time.Second

// Follow makes s a replica of master at once; the sentinels take some ten
// seconds to tell a master that has come back.
func (s *Server) Follow(master *Server) {
	s.t.Helper()
	s.Do("REPLICAOF", Host, port(master.Addr))
}

// WaitForReplicas waits until the master has n replicas that keep up with it,
// and the sentinels know that.
func (g *Guarded) WaitForReplicas(n int) {
	g.Master.t.Helper()
	g.Sentinels[0].Until("the replicas keep up", func() bool {
		replication := fmt.Sprint(g.CurrentMaster().Do("INFO", "replication"))
		return strings.Count(replication, "state=online") == n
	})
}
