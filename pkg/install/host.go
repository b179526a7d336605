// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/pkg/cni"
)

// Names of what is installed, which are nv-ipam's.
const (
	binaryName = "nv-ipam"
	confName   = "nv-ipam.conf"
)

const (
	binaryMode fs.FileMode = 0o755
	secretMode fs.FileMode = 0o600
)

// Settings are what is written to nv-ipam.conf: the plugin's own, and nv-ipam's
// two which the plugin does not use. With them, nv-ipam's plugin goes on working
// until it is replaced, and works again after a rollback.
type Settings struct {
	cni.Settings
	DaemonSocket             string `json:"daemonSocket,omitempty"`
	DaemonCallTimeoutSeconds int    `json:"daemonCallTimeoutSeconds,omitempty"`
}

// Host is where the plugin is put.
type Host struct {
	// Source is the plugin's binary, as it came with the image. Empty where the
	// host has it already: then it is neither copied nor looked after.
	Source string
	BinDir string
	// ConfDir of nv-ipam.conf, which is written where Settings is not nil.
	ConfDir  string
	Settings *Settings
	// DataDir is the plugin's, where the record of what was installed is kept.
	DataDir string
	// FormerDataDirs may have the record of an earlier run, beside the directory that
	// nv-ipam.conf names.
	FormerDataDirs []string
	// Root is where the host's root directory is, for Status: empty if it is this
	// process's own.
	Root string
	// Beside are files that somebody else keeps with this Host's record and that
	// install leaves alone: those of Credentials.
	Beside []string

	mu sync.Mutex // one change of the record at a time

	seen sums // by drift
}

// Binary is the path of the plugin.
func (h *Host) Binary() string { return filepath.Join(h.BinDir, binaryName) }

// Confs are the paths of nv-ipam.conf: where the plugin looks first, and a copy in DataDir. A
// container may have another directory of the host mounted as the first.
func (h *Host) Confs() []string {
	return []string{filepath.Join(h.ConfDir, confName), filepath.Join(h.DataDir, confName)}
}

// Foreign reports whether the plugin that is there was not installed by this:
// it is nv-ipam's then, or nobody's.
func (h *Host) Foreign() (bool, error) {
	if h.Source == "" {
		return false, nil
	}
	r, err := readRecord(h.DataDir)
	if err != nil {
		return false, err
	}
	sum, err := fileSum(h.Binary())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, cni.ErrNotRegular) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	want, err := fileSum(h.Source)
	return sum != want && !r.installed(h.Binary(), sum), err
}

// drift says what is not as install leaves it; nothing where all is well.
func (h *Host) drift() ([]string, error) {
	var out []string
	if h.Source != "" {
		want, err := h.seen.of(h.Source)
		if err != nil {
			return nil, err
		}
		drift, err := differs(h.Binary(), want, binaryMode, h.seen.of)
		if err != nil {
			return nil, err
		}
		out = append(out, drift...)
	}
	if h.Settings != nil {
		data, err := h.conf()
		if err != nil {
			return nil, err
		}
		for _, path := range h.Confs() {
			drift, err := differs(path, dataSum(data), secretMode, h.seen.of)
			if err != nil {
				return nil, err
			}
			out = append(out, drift...)
		}
	}
	return out, nil
}

func differs(path, sum string, mode fs.FileMode, sumOf func(path string) (string, error)) ([]string, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{path + " is missing"}, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm() != mode {
		return []string{fmt.Sprintf("%s has mode %v, expected %v", path, info.Mode(), mode)}, nil
	}
	got, err := sumOf(path)
	if err == nil && got != sum {
		return []string{path + " has other content"}, nil
	}
	return nil, err
}

func (h *Host) conf() ([]byte, error) {
	data, err := json.MarshalIndent(h.Settings, "", "  ")
	return append(data, '\n'), err
}

// install puts configuration and plugin in their places, in this order, so that
// the plugin never runs without its configuration, removes what an earlier run put
// there and this one does not, and checks the result. The plugin is run where it will
// be run before it takes the place of the one that is there.
func (h *Host) install(ctx context.Context) error {
	if err := h.installConfs(); err != nil {
		return err
	}
	if err := h.installBinary(ctx); err != nil {
		return fmt.Errorf("installing %s: %w", h.Binary(), err)
	}
	left, err := h.removeStale()
	if err != nil {
		return fmt.Errorf("removing what was installed before: %w", err)
	}
	for _, path := range left {
		klog.FromContext(ctx).Info("Not removed, although an earlier run of the installer wrote it: somebody has changed it since", "path", path)
	}
	drift, err := h.drift()
	if err == nil && len(drift) > 0 {
		err = errors.New(strings.Join(drift, "; "))
	}
	if err != nil {
		return fmt.Errorf("verifying what was installed: %w", err)
	}
	if h.Source == "" {
		return nil
	}
	return runs(ctx, h.Binary())
}

func (h *Host) installConfs() error {
	if h.Settings == nil {
		return nil
	}
	data, err := h.conf()
	if err != nil {
		return err
	}
	for _, path := range h.Confs() {
		err := h.note(path, dataSum(data))
		if err == nil {
			err = WriteFile(path, data, secretMode)
		}
		if err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}

func (h *Host) installBinary(ctx context.Context) error {
	if h.Source == "" {
		return nil
	}
	sum, err := fileSum(h.Source)
	if err != nil {
		return err
	}
	if drift, err := differs(h.Binary(), sum, binaryMode, fileSum); err == nil && len(drift) == 0 {
		return h.note(h.Binary(), sum)
	}
	source, err := os.Open(h.Source)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	if err := h.note(h.Binary(), sum); err != nil {
		return err
	}
	return place(h.Binary(), source, binaryMode, func(tmp string) error {
		got, err := fileSum(tmp)
		if err != nil {
			return err
		}
		if got != sum {
			return fmt.Errorf("copy of %s has checksum %s, expected %s", h.Source, got, sum)
		}
		return runs(ctx, tmp)
	})
}

// removeStale removes what an earlier run has installed and this one does not: the
// kubeconfig and the token of a mode that is no longer set, for the plugin would go on
// using them. It returns what it has left because somebody has changed it since.
func (h *Host) removeStale() (left []string, err error) {
	keep := slices.Clone(h.Beside)
	if h.Source != "" {
		keep = append(keep, h.Binary())
	}
	if h.Settings != nil {
		keep = append(keep, h.Confs()...)
	}
	return h.remove(func(path string) bool { return !slices.Contains(keep, path) })
}

// uninstall removes what install and Credentials have put on the host, and says
// what it has left because somebody has changed it since. What the plugin and
// the migration keep in DataDir stays: pods may still hold addresses.
func (h *Host) uninstall() (left []string, err error) {
	left, err = h.remove(func(string) bool { return true })
	if err != nil {
		return left, err
	}
	r, err := readRecord(h.DataDir)
	if err != nil {
		return left, err
	}
	if err := ignoreMissing(os.Remove(recordPath(h.DataDir))); err != nil {
		return left, err
	}
	for _, dir := range r.Dirs {
		_ = os.Remove(dir) // fails where it is not empty, as it should
	}
	return left, nil
}

// remove removes the chosen files that are as they were installed, from the record
// too, and returns the others that it was to remove.
func (h *Host) remove(chosen func(path string) bool) (left []string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, err := readRecord(h.DataDir)
	if err != nil {
		return nil, err
	}
	var errs []error
	before := len(r.Files)
	for _, path := range slices.Sorted(maps.Keys(r.Files)) {
		if !chosen(path) {
			continue
		}
		changed, err := removeIf(path, func(sum string) bool { return r.installed(path, sum) })
		switch {
		case err != nil:
			errs = append(errs, err)
		case changed:
			left = append(left, path)
		default:
			delete(r.Files, path)
			delete(r.Before, path)
		}
	}
	if len(r.Files) < before {
		errs = append(errs, h.writeRecord(r))
	}
	return left, errors.Join(errs...)
}

// removeIf removes a file if its checksum is one of ours. A file that is not there is fine; what
// is no file was put there by somebody else.
func removeIf(path string, ours func(sum string) bool) (changed bool, err error) {
	got, err := fileSum(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, ignoreMissing(removeTemps(path))
	case err != nil && !errors.Is(err, cni.ErrNotRegular):
		return false, err
	case err != nil || !ours(got):
		return true, ignoreMissing(removeTemps(path))
	}
	return false, errors.Join(os.Remove(path), removeTemps(path))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func fileSum(path string) (string, error) {
	f, err := cni.OpenRegular(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func dataSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
