// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
)

// Pool lends servers to tests of which each needs one of its own, in which nothing was done
// yet. Most of what a short test with a server costs is the start of the server.
type Pool struct {
	Options Options

	mu   sync.Mutex
	free []*lent
}

// lent is a server, and what it had when it was new.
type lent struct {
	*Env
	had    map[string]string // in etcd
	served []string          // API groups
}

// Get returns a server that is as good as new, until the end of the test.
func (p *Pool) Get(t *testing.T) *Env {
	t.Helper()
	l := p.take()
	if l == nil {
		env, err := Start(p.Options)
		if err != nil {
			t.Fatal(err)
		}
		l = &lent{env, env.stored(t), env.groups(t)}
	}
	t.Cleanup(func() {
		if t.Failed() { // it may be the server
			if err := l.Stop(); err != nil {
				t.Error(err)
			}
			return
		}
		l.rewind(t)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.free = append(p.free, l)
	})
	return l.Env
}

func (p *Pool) take() *lent {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return nil
	}
	l := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return l
}

// Stop stops all servers.
func (p *Pool) Stop() error {
	var errs []error
	for l := p.take(); l != nil; l = p.take() {
		errs = append(errs, l.Stop())
	}
	return errors.Join(errs...)
}

// stored is what etcd has, by key, without what the server writes by itself at any time.
func (e *Env) stored(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, kv := range e.read(t, map[string]any{"key": []byte("/registry/"), "range_end": []byte("/registry0")}) {
		if !ofTheServer.Match(kv.Key) {
			out[string(kv.Key)] = string(kv.Value)
		}
	}
	return out
}

var ofTheServer = regexp.MustCompile(`^/registry/((leases|masterleases|events|ranges|ipaddresses|servicecidrs|apiregistration\.k8s\.io)/|services/[a-z]+/default/kubernetes$|namespaces/(default|kube-[a-z-]+)$)`)

// groups are the API groups that are served.
func (e *Env) groups(t *testing.T) (out []string) {
	t.Helper()
	client, err := kubernetes.NewForConfig(e.Config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := client.Discovery().ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range list.Groups {
		out = append(out, g.Name)
	}
	slices.Sort(out)
	return out
}

// rewind makes the server forget what was done: behind its back, as another one beside it
// would do it, so that no finalizer is asked. It returns when nothing of it is served.
func (l *lent) rewind(t *testing.T) {
	t.Helper()
	var ops []any
	now := l.stored(t)
	for key := range now {
		if _, old := l.had[key]; !old {
			ops = append(ops, map[string]any{"requestDeleteRange": map[string]any{"key": []byte(key)}})
		}
	}
	for key, value := range l.had {
		if now[key] != value {
			ops = append(ops, put(key, []byte(value)))
		}
	}
	l.write(t, ops)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if groups := l.groups(t); slices.Equal(groups, l.served) {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the API still has the groups %v", groups)
		}
	}
	if err := os.RemoveAll(filepath.Join(l.Dir, ".kube")); err != nil { // what kubectl remembers
		t.Fatal(err)
	}
}
