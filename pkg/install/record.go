// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
)

// record is what was installed: checksums by path, so that only what is still as
// it was installed is taken away again. A file without checksum changes all the
// time, and is ours whatever is in it.
type record struct {
	Files map[string]string `json:"files"`
	// Before are the checksums of what may still be in the place of some of them: a process
	// may be killed between its note and its write.
	Before map[string]string `json:"before,omitempty"`
	// Dirs that were made, to be removed when they are empty.
	Dirs []string `json:"dirs,omitempty"`
}

func newRecord() *record { return &record{Files: map[string]string{}, Before: map[string]string{}} }

// installed reports whether a file with this checksum is one that was installed there.
func (r *record) installed(path, sum string) bool {
	want, ok := r.Files[path]
	return ok && (want == "" || sum == want || sum == r.Before[path])
}

func recordPath(dataDir string) string { return filepath.Join(dataDir, "installed.json") }

// readRecord returns the record in a data directory. One that is damaged counts as empty: it
// must not keep the host from being set up, which makes a new one.
func readRecord(dataDir string) (*record, error) {
	path := recordPath(dataDir)
	data, err := readRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newRecord(), nil
	}
	if err != nil && !errors.Is(err, cni.ErrNotRegular) {
		return nil, err
	}
	r := newRecord()
	if err == nil {
		err = json.Unmarshal(data, r)
	}
	if err != nil {
		klog.ErrorS(err, "The record of what was installed is damaged, and counts as empty. To remove what an earlier run has put on this host, install once more and then uninstall", "path", path)
		return newRecord(), nil
	}
	if r.Files == nil { // null
		r.Files = map[string]string{}
	}
	if r.Before == nil {
		r.Before = map[string]string{}
	}
	return r, nil
}

// note enters a file before it is put in its place, so that a process that is
// killed leaves nothing that is not known.
func (h *Host) note(path, sum string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, err := readRecord(h.DataDir)
	if err != nil {
		return err
	}
	if err := h.makeDirs(r, filepath.Dir(path)); err != nil {
		return err
	}
	if before, ok := r.Files[path]; ok && before == sum {
		return nil
	}
	if got, err := fileSum(path); err == nil && r.installed(path, got) && sum != "" {
		r.Before[path] = got
	}
	r.Files[path] = sum
	return h.writeRecord(r)
}

// makeDirs makes the data directory, and others, and enters those that were not there.
func (h *Host) makeDirs(r *record, others ...string) error {
	for _, dir := range append([]string{h.DataDir}, others...) {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			r.Dirs = append(r.Dirs, dir)
		}
		mode := fs.FileMode(0o755)
		if dir == h.DataDir {
			mode = 0o700 // as the plugin makes it
		}
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) writeRecord(r *record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(recordPath(h.DataDir), append(data, '\n'), secretMode)
}

// takeOver enters what an earlier run has recorded in another data directory: nobody else knows
// what that has put on the host.
func (h *Host) takeOver() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, dir := range h.formerDataDirs() {
		if err := h.takeOverFrom(dir); err != nil {
			if errors.Is(err, syscall.EROFS) {
				err = fmt.Errorf("%w: mount it writable until all nodes are rolled", err)
			}
			errs = append(errs, fmt.Errorf("taking over %s: %w", recordPath(dir), err))
		}
	}
	return errors.Join(errs...)
}

// formerDataDirs are the other directories that may have a record.
func (h *Host) formerDataDirs() []string {
	dirs := slices.Clone(h.FormerDataDirs)
	var conf struct{ DataDir string }
	if data, err := readRegular(h.Confs()[0]); err == nil && json.Unmarshal(data, &conf) == nil && filepath.IsAbs(conf.DataDir) {
		dirs = append(dirs, conf.DataDir)
	}
	return slices.DeleteFunc(dirs, func(dir string) bool { return sameFile(dir, h.DataDir) })
}

// sameFile reports whether two paths are one directory, which may be mounted twice.
func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

func (h *Host) takeOverFrom(dir string) error {
	former, err := readRecord(dir)
	if err != nil || !h.isOf(former) {
		return err
	}
	r, err := readRecord(h.DataDir)
	if err != nil {
		return err
	}
	r.add(former)
	if err := h.makeDirs(r); err != nil {
		return err
	}
	if err := h.writeRecord(r); err != nil {
		return err
	}
	for _, left := range hint.All(dir, slog.Default()) { // what is claimed from now on is entered elsewhere
		left.Forget()
	}
	return ignoreMissing(os.Remove(recordPath(dir)))
}

// isOf reports whether a record is of this installation: it names a file where this one has its
// own. Another one on the host has its own directories.
func (h *Host) isOf(r *record) bool {
	return slices.ContainsFunc([]string{h.Binary(), h.Confs()[0]}, func(path string) bool {
		_, found := r.Files[path]
		return found
	})
}

// add adds what an earlier run has recorded elsewhere. Of a file that both have it is what may
// still be in its place.
func (r *record) add(former *record) {
	for path, sum := range former.Files {
		before := former.Before[path]
		if _, ok := r.Files[path]; !ok {
			r.Files[path] = sum
		} else {
			before = sum
		}
		if _, ok := r.Before[path]; !ok && before != "" {
			r.Before[path] = before
		}
	}
	r.Dirs = append(r.Dirs, former.Dirs...)
}
