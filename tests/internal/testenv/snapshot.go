// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Snapshot is a backup of etcd: the directory of its data.
type Snapshot string

// Snapshot copies what etcd has. etcd stands still meanwhile: the copy is what a loss of
// power would leave, which etcd reads like any other.
func (e *Env) Snapshot(t testing.TB) Snapshot {
	t.Helper()
	dir, err := os.MkdirTemp(e.Dir, "snapshot-")
	if err == nil {
		err = e.whileEtcdStands(func() error { return os.CopyFS(filepath.Join(dir, "data"), os.DirFS(e.dataDir())) })
	}
	if err != nil {
		t.Fatalf("snapshot of etcd: %v", err)
	}
	return Snapshot(dir)
}

func (e *Env) whileEtcdStands(f func() error) error {
	pid, err := e.PID("etcd")
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	return errors.Join(f(), syscall.Kill(pid, syscall.SIGCONT))
}

// Restore sets etcd back to a snapshot, as an operator restores a backup. All that was
// written since is gone.
func (e *Env) Restore(t testing.TB, from Snapshot) {
	t.Helper()
	err := e.withoutEtcd(func() error {
		if err := os.RemoveAll(e.dataDir()); err != nil {
			return err
		}
		if err := os.CopyFS(e.dataDir(), os.DirFS(filepath.Join(string(from), "data"))); err != nil {
			return err
		}
		return os.Chmod(e.dataDir(), 0o700) // etcd insists
	})
	if err != nil {
		t.Fatalf("restoring etcd: %v", err)
	}
}

// Revise makes n revisions of etcd that change nothing of the cluster's. Before a restore
// they stand for what a cluster does otherwise. After it, with more of them than were
// lost, resource versions do not go back, as after `etcdutl snapshot restore
// --bump-revision`.
func (e *Env) Revise(t testing.TB, n int) {
	t.Helper()
	key := base64.StdEncoding.EncodeToString([]byte("/revised"))
	for range n {
		e.etcd(t, "put", map[string]string{"key": key}, &struct{}{})
	}
}

func (e *Env) dataDir() string { return e.envtest.ControlPlane.Etcd.DataDir }

// withoutEtcd runs f while neither etcd nor the API server runs. Both keep their ports.
func (e *Env) withoutEtcd(f func() error) error {
	if err := e.KillAPIServer(); err != nil { // waits for nobody's watches
		return fmt.Errorf("killing the API server: %w", err)
	}
	etcd := e.envtest.ControlPlane.Etcd
	if err := errors.Join(e.guard.kill("etcd"), e.guard.forget("etcd")); err != nil {
		return fmt.Errorf("killing etcd: %w", err)
	}
	if err := f(); err != nil {
		return err
	}
	if err := etcd.Start(); err != nil {
		return fmt.Errorf("starting etcd: %w", err)
	}
	return e.StartAPIServer()
}
