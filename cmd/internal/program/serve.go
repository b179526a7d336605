// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package program is what ipam-controller and ipam-node have in common: klog's
// flags, the log, and an HTTP server for probes and metrics.
package program

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// Limits bound what clients of an HTTP server can take of it.
type Limits struct {
	// ReadHeader, Read and Write bound one request, Idle the time between two on
	// one connection.
	ReadHeader, Read, Write, Idle time.Duration
	// HeaderBytes is the size of a request's header.
	HeaderBytes int
	// Connections that are open at a time. One more takes the place of the one that
	// has been without a request for longest.
	Connections int
}

// DefaultLimits suit a kubelet and some Prometheus servers, which ask once in some
// seconds, for the metrics of 100,000 allocations at most.
var DefaultLimits = Limits{
	ReadHeader: 5 * time.Second, Read: 10 * time.Second, Write: 30 * time.Second, Idle: 2 * time.Minute,
	HeaderBytes: 16 << 10, Connections: 128,
}

// Serve answers requests to address until stop is called. An empty address, or 0,
// serves nothing.
func Serve(address string, handler http.Handler, limits Limits) (stop func(), err error) {
	if address == "" || address == "0" {
		return func() {}, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return serveOn(listener, handler, limits), nil
}

func serveOn(listener net.Listener, handler http.Handler, limits Limits) (stop func()) {
	open := &connections{limit: limits.Connections, active: map[net.Conn]bool{}}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: limits.ReadHeader,
		ReadTimeout:       limits.Read,
		WriteTimeout:      limits.Write,
		IdleTimeout:       limits.Idle,
		MaxHeaderBytes:    limits.HeaderBytes,
		ConnState:         open.changed,
	}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			klog.ErrorS(err, "Nothing is served any more", "address", listener.Addr())
		}
	}()
	return func() { _ = server.Close() }
}

// connections are those of a server. To wait in a queue instead would let anybody who
// opens many and says nothing keep out the kubelet, which then restarts the pod.
type connections struct {
	limit int

	mu      sync.Mutex
	waiting []net.Conn // for a request, the oldest first
	active  map[net.Conn]bool
}

// changed is the server's ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = slices.DeleteFunc(c.waiting, func(other net.Conn) bool { return other == conn })
	delete(c.active, conn)
	switch state {
	case http.StateActive:
		c.active[conn] = true
	case http.StateNew, http.StateIdle:
		c.waiting = append(c.waiting, conn)
	case http.StateClosed, http.StateHijacked:
	}
	for len(c.waiting) > 0 && len(c.waiting)+len(c.active) > c.limit {
		_ = c.waiting[0].Close() // the server notices
		c.waiting = c.waiting[1:]
	}
}
