// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// few is how many calls suffice for what hardly varies.
const few = 20

// calls measures each verb by itself.
func (b *bench) calls() error {
	if err := b.pool("calls", blocksOf("10.0.0.0/16", 1000), hostNames(hostCount)); err != nil {
		return err
	}
	h, err := b.host(0, "calls", "calls")
	if err != nil {
		return err
	}
	if err := h.warmUp(); err != nil {
		return err
	}
	containers := b.attached(b.options.calls)
	verb := func(h *host, verb, name string) *variant {
		return &variant{name: name, call: func(i int) (sample, error) { return h.call(verb, containers[i], "") }}
	}
	floor, add := b.floorVariant(), verb(h, "ADD", "ADD")
	variants := []*variant{floor, add, verb(h, "CHECK", "CHECK"), verb(h, "DEL", "DEL")}
	for _, path := range strings.FieldsFunc(b.also, func(r rune) bool { return r == ',' }) {
		other, err := b.other(path)
		if err != nil {
			return err
		}
		variants = append(variants, verb(other, "ADD", "ADD of "+path), verb(other, "DEL", "DEL of "+path))
	}
	if err := inTurns(len(containers), variants); err != nil {
		return err
	}
	if err := b.holds(nil, "calls"); err != nil { // a CHECK of each has said that it was held
		return err
	}
	t := b.table("One call at a time", fmt.Sprintf("%d of each, in turns. First byte: from the start of the process until its first byte on the connection. The plugin works under the role and the admission policy of a node, with its certificate, as the floor does.", len(containers)),
		"p50 ms", "p90 ms", "p99 ms", "× floor (p50)", "requests", "writes", "CPU ms", "peak MiB", "first byte ms")
	extras, err := b.extras(h)
	if err == nil {
		err = b.holds(nil, "calls")
	}
	if err != nil {
		return err
	}
	for i, v := range variants {
		x := extra{none, none, none, none} // measured of this build only
		if i < len(extras) {
			x = extras[i]
		}
		t.add(v.name, v.walls.p50(), v.walls.p90(), v.walls.p99(), v.walls.p50()/floor.walls.p50(), x.requests, x.writes, v.cpus.p50(), x.peak, x.firstByte)
		b.say("%s: p50 %.1f ms, %.2f × floor, CPU %.2f ms, %.2f × floor", v.name, v.walls.p50(), v.walls.p50()/floor.walls.p50(), v.cpus.p50(), v.cpus.p50()/floor.cpus.p50())
		if i < len(extras) {
			b.say("%s: first byte %.1f ms, peak %.1f MiB", v.name, x.firstByte, x.peak)
		}
	}
	b.target("ADD, p50 to the floor's", add.walls.p50()/floor.walls.p50(), 1.3, " ×")
	b.target("ADD, p99 to its p50", add.walls.p99()/add.walls.p50(), 2, " ×")
	b.target("ADD, requests", extras[1].requests, 2, "")
	b.target("ADD, writes", extras[1].writes, 1, "")
	b.target("ADD, peak memory", extras[1].peak, 25, " MiB")
	b.target("ADD, first byte on the wire", extras[1].firstByte, 8, " ms")
	return nil
}

// other returns a host that has another build of the plugin.
func (b *bench) other(path string) (*host, error) {
	h, err := b.host(1, "calls-"+strings.ReplaceAll(path, "/", "-"), "calls")
	if err != nil {
		return nil, err
	}
	if h.plugin, err = b.copyOf(path); err != nil {
		return nil, err
	}
	return h, h.warmUp()
}

// warmUp makes the first call of a node, which reads more than the next ones.
func (h *host) warmUp() error {
	container := h.b.container()
	for _, verb := range []string{"ADD", "DEL"} {
		if _, err := h.call(verb, container, ""); err != nil {
			return err
		}
	}
	return nil
}

// extra is what is measured of a verb beside its time.
type extra struct{ requests, writes, peak, firstByte float64 }

// extras returns them for the floor, ADD, CHECK and DEL.
func (b *bench) extras(h *host) ([]extra, error) {
	wire, err := b.listen(h)
	if err != nil {
		return nil, err
	}
	defer wire.close()
	byWire := *h
	byWire.dir += "-wire"
	if err := byWire.configure(wire.kubeconfig); err != nil {
		return nil, err
	}
	if err := byWire.warmUp(); err != nil {
		return nil, err
	}
	wire.opened()

	// Three calls of each: one that is counted, one for the memory, one for the
	// wire, each with a container that has come so far.
	counted, weighed, timed := b.attached(few), b.attached(few), b.attached(few)
	at := b.floors
	b.floors += floorsPerPhase
	var out []extra
	for step, verb := range []string{"floor", "ADD", "CHECK", "DEL"} {
		kinds := []func(i int) *exec.Cmd{
			func(i int) *exec.Cmd { return h.command(verb, counted[i], "") },
			func(i int) *exec.Cmd { return h.command(verb, weighed[i], "") },
			func(i int) *exec.Cmd { return byWire.command(verb, timed[i], "") },
		}
		if step == 0 {
			for kind := range kinds {
				kinds[kind] = func(i int) *exec.Cmd {
					kubeconfig := h.kubeconfig
					if kind == 2 {
						kubeconfig = wire.kubeconfig
					}
					return b.floorCommand(at+(kind*few+i)*hostCount, kubeconfig)
				}
			}
		}
		x, err := b.extra(kinds[0], kinds[1], kinds[2], wire)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", verb, err)
		}
		out = append(out, x)
	}
	return out, nil
}

func (b *bench) extra(counted, weighed, timed func(i int) *exec.Cmd, w *wire) (x extra, err error) {
	before, err := b.requests()
	if err != nil {
		return x, err
	}
	for i := range few {
		if _, err := measure(counted(i)); err != nil {
			return x, err
		}
	}
	after, err := b.requests()
	if err != nil {
		return x, err
	}
	x.requests = float64(after.since(before).sum("", "")) / few
	x.writes = float64(after.since(before).writes("")) / few

	for i := range few {
		peak, err := b.peakMemory(weighed(i))
		if err != nil {
			return x, err
		}
		x.peak = max(x.peak, peak)
	}

	var firsts times
	for i := range few {
		s, err := measure(timed(i))
		if err != nil {
			return x, err
		}
		opened := w.opened()
		if len(opened) == 0 {
			return x, errors.New("no connection was made")
		}
		firsts = append(firsts, opened[0].Sub(s.started))
	}
	x.firstByte = firsts.p50()
	return x, nil
}

// peakMemory runs a command and returns what was resident at most, in MiB.
func (b *bench) peakMemory(cmd *exec.Cmd) (float64, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	outer := exec.CommandContext(b.ctx, b.peakPath, cmd.Args...)
	outer.Args[1] = cmd.Path
	outer.Env, outer.Stdin = cmd.Env, cmd.Stdin
	outer.ExtraFiles = []*os.File{w} // descriptor 3
	_, err = measure(outer)
	w.Close()
	if err != nil {
		return 0, err
	}
	var kib int
	if _, err := fmt.Fscan(r, &kib); err != nil {
		return 0, err
	}
	return float64(kib) / 1024, nil
}

// wire passes connections on to the API server as they are, TLS and all, and
// notes when each one's first byte came.
type wire struct {
	listener   net.Listener
	kubeconfig string

	mu    sync.Mutex
	first []time.Time
}

// listen starts a wire, and writes a kubeconfig for it.
func (b *bench) listen(h *host) (*wire, error) {
	config, err := clientcmd.LoadFromFile(h.kubeconfig)
	if err != nil {
		return nil, err
	}
	server, err := url.Parse(b.env.Config.Host)
	if err != nil {
		return nil, err
	}
	w := &wire{kubeconfig: filepath.Join(b.env.Dir, "wire.kubeconfig")}
	if w.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	for _, cluster := range config.Clusters {
		cluster.Server = "https://" + w.listener.Addr().String()
	}
	if err := clientcmd.WriteToFile(*config, w.kubeconfig); err != nil {
		return nil, err
	}
	go w.serve(strings.TrimPrefix(server.Host, "//"))
	return w, nil
}

func (w *wire) close() { w.listener.Close() }

// opened returns when the connections since the last call had their first bytes.
func (w *wire) opened() []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.first
	w.first = nil
	return out
}

func (w *wire) serve(server string) {
	for {
		client, err := w.listener.Accept()
		if err != nil { // closed
			return
		}
		go w.pass(client, server)
	}
}

func (w *wire) pass(client net.Conn, server string) {
	defer client.Close()
	buf := make([]byte, 1<<16)
	n, err := client.Read(buf)
	if err != nil {
		return
	}
	w.mu.Lock()
	w.first = append(w.first, time.Now())
	w.mu.Unlock()
	to, err := net.Dial("tcp", server)
	if err != nil { // the client will say so
		return
	}
	defer to.Close()
	if _, err := to.Write(buf[:n]); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(to, client)
		to.Close()
	}()
	_, _ = io.Copy(client, to)
}
