// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package simnode

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
)

// Forwarder makes a server on this machine's loopback reachable from a
// namespace, under the same address, so that a kubeconfig and the server's
// certificate fit on both sides.
type Forwarder struct {
	address  string
	listener net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	pipes    sync.WaitGroup
}

// Forward listens on address (host:port) in the namespace and pipes what
// connects to that address out here.
func Forward(n *Netns, address string) (*Forwarder, error) {
	f := &Forwarder{address: address}
	err := n.do(func() (err error) {
		f.listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("forward %s: %w", address, err)
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.pipes.Go(f.accept)
	return f, nil
}

// Close ends the listener and all connections.
func (f *Forwarder) Close() error {
	f.cancel()
	err := f.listener.Close()
	f.pipes.Wait()
	return err
}

func (f *Forwarder) accept() {
	for {
		in, err := f.listener.Accept()
		if err != nil {
			return // closed
		}
		f.pipes.Go(func() { f.pipe(in) })
	}
}

func (f *Forwarder) pipe(in net.Conn) {
	defer in.Close()
	out, err := (&net.Dialer{}).DialContext(f.ctx, "tcp", f.address)
	if err != nil {
		return // as if the server had refused: its client will say so
	}
	defer out.Close()
	stop := context.AfterFunc(f.ctx, func() { in.Close(); out.Close() })
	defer stop()

	var there sync.WaitGroup
	there.Go(func() { copyHalf(out, in) })
	copyHalf(in, out)
	there.Wait()
}

// copyHalf copies one direction and passes its end on.
func copyHalf(to, from net.Conn) {
	_, _ = io.Copy(to, from) // whoever reads or writes at the ends sees the error
	_ = to.(*net.TCPConn).CloseWrite()
}
