// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// guard ends a test that would otherwise hang.
const guard = time.Minute

// start serves "ok", and "slow" without end, on a port of its own.
func start(t *testing.T, limits Limits) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for line := strings.Repeat("x", 1<<16); ; {
			if _, err := io.WriteString(w, line); err != nil {
				return
			}
		}
	})
	t.Cleanup(serveOn(listener, mux, limits))
	return listener.Addr().String()
}

func dial(t *testing.T, address, text string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(guard))
	}
	if err == nil {
		_, err = io.WriteString(conn, text)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// closed waits until the server has closed a connection.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, conn)
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() { //nolint:errorlint // as it comes from a connection
		t.Error("the connection is still open")
	}
}

func get(t *testing.T, address string) {
	t.Helper()
	client := &http.Client{Timeout: guard, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + address + "/ok")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %s", resp.Status)
	}
}

// However a client keeps a connection, it is closed in time, and others are
// answered meanwhile.
func TestConnectionsEnd(t *testing.T) {
	const short = 50 * time.Millisecond
	long := Limits{ReadHeader: guard, Read: guard, Write: guard, Idle: guard, HeaderBytes: 4 << 10, Connections: 1000}
	for _, tc := range []struct {
		name, says string
		shorten    func(*Limits)
	}{
		{"says nothing", "", func(l *Limits) { l.ReadHeader = short }},
		{"half a header", "GET /ok HTTP/1.1\r\nHost: x\r\nX-", func(l *Limits) { l.ReadHeader = short }},
		{"half a body", "POST /ok HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx", func(l *Limits) { l.Read = short }},
		{"idle after an answer", "GET /ok HTTP/1.1\r\nHost: x\r\n\r\n", func(l *Limits) { l.Idle = short }},
		{"a header without end", "GET /ok HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10), func(*Limits) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			limits := long
			tc.shorten(&limits)
			address := start(t, limits)
			var all []net.Conn
			for range 200 {
				all = append(all, dial(t, address, tc.says))
			}
			get(t, address)
			for _, conn := range all {
				closed(t, conn)
			}
		})
	}
	t.Run("does not read the answer", func(t *testing.T) {
		limits := long
		limits.Write = short
		conn := dial(t, start(t, limits), "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
		closed(t, conn) // what was on its way comes first
	})
}

// More connections than there may be: the oldest make room, and a new one is
// answered at once, though no time is over.
func TestConnectionsAreLimited(t *testing.T) {
	address := start(t, Limits{ReadHeader: guard, Read: guard, Write: guard, Idle: guard, HeaderBytes: 4 << 10, Connections: 10})
	var all []net.Conn
	for range 500 {
		all = append(all, dial(t, address, ""))
	}
	get(t, address)
	for _, conn := range all[:480] { // the last are among those that may stay
		closed(t, conn)
	}
}
