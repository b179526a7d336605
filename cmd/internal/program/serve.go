// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package program is what ipam-controller and ipam-node have in common: klog's
// flags, the log, and an HTTP server for probes and metrics.
package program

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
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

// unixPrefix is what an address begins with that is the path of a socket.
const unixPrefix = "unix:"

// Serve answers requests to address, host:port or unix:PATH, until stop is called. An
// empty address, or 0, serves nothing. A socket that an earlier process has left is
// replaced.
func Serve(address string, handler http.Handler, limits Limits) (stop func(), err error) {
	if address == "" || address == "0" {
		return func() {}, nil
	}
	network := "tcp"
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		network, address = "unix", path
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return serveOn(listener, handler, limits), nil
}

// Get asks a server that Serve has started for a path, such as /readyz. It returns the
// answer without the newline at its end, and an error if its status is not 200.
func Get(ctx context.Context, address, path string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if socket, ok := strings.CutPrefix(address, unixPrefix); ok {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	text := strings.TrimSuffix(string(body), "\n")
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return text, err
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
