// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/pkg/cni"
)

// A script is enough of a plugin here; tests/install has the real one.
const (
	plugin    = "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.1.0\"]}'\n"
	newPlugin = plugin + "# and newer\n"
	noPlugin  = "#!/bin/sh\necho hello\n"
	broken    = "\x7fELF of another machine"
)

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func newHost(t *testing.T) *Host {
	t.Helper()
	dir := t.TempDir()
	h := &Host{
		Source: filepath.Join(dir, "source"), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "etc", "nv-ipam.d"), DataDir: filepath.Join(dir, "data"),
		Settings: &Settings{Settings: cni.Settings{PoolsNamespace: "ns"}},
	}
	write(t, h.Source, plugin, 0o600)
	if err := os.Mkdir(h.BinDir, 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

func mustInstall(t *testing.T, h *Host) {
	t.Helper()
	if err := h.install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if drift, err := h.drift(); err != nil || len(drift) > 0 {
		t.Fatalf("after Install: drift %q, %v", drift, err)
	}
}

// files lists what is below a directory.
func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInstall(t *testing.T) {
	h := newHost(t)
	write(t, filepath.Join(h.BinDir, "macvlan"), "another's", 0o755)
	write(t, filepath.Join(h.BinDir, ".nv-ipam"+tempMark+"123"), "of one that was killed", 0o600)
	mustInstall(t, h)
	mustInstall(t, h)
	if got := files(t, h.BinDir); !slices.Equal(got, []string{"macvlan", "nv-ipam"}) {
		t.Errorf("bin has %q", got)
	}
	for path, mode := range map[string]fs.FileMode{h.Binary(): 0o755, filepath.Join(h.ConfDir, "nv-ipam.conf"): 0o600, filepath.Join(h.DataDir, "nv-ipam.conf"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	left, err := h.uninstall()
	if err != nil || len(left) > 0 {
		t.Errorf("uninstall: left %q, %v", left, err)
	}
	if got := files(t, filepath.Dir(h.BinDir)); !slices.Equal(got, []string{"bin/macvlan", "source"}) {
		t.Errorf("after uninstall there are %q", got)
	}
	if _, err := os.Stat(h.ConfDir); err == nil {
		t.Error("the configuration directory, which Install made, is still there")
	}
	if _, err := h.uninstall(); err != nil {
		t.Errorf("uninstall again: %v", err)
	}
}

func TestUninstallLeavesWhatIsNotOurs(t *testing.T) {
	h := newHost(t)
	write(t, h.Binary(), "nv-ipam's", 0o755)
	if left, err := h.uninstall(); err != nil || len(left) > 0 || read(t, h.Binary()) != "nv-ipam's" {
		t.Errorf("nothing was installed: left %q, %v", left, err)
	}
	mustInstall(t, h)
	write(t, h.Binary(), "nv-ipam's again", 0o755)
	write(t, filepath.Join(h.ConfDir, "more"), "another's", 0o600)
	left, err := h.uninstall()
	if err != nil || !slices.Equal(left, []string{h.Binary()}) {
		t.Errorf("left %q, %v", left, err)
	}
	if got := read(t, h.Binary()); got != "nv-ipam's again" {
		t.Errorf("binary %q", got)
	}
	if got := files(t, h.ConfDir); !slices.Equal(got, []string{"more"}) {
		t.Errorf("conf dir has %q", got)
	}
}

func TestDrift(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, h *Host){
		"binary gone":        func(_ *testing.T, h *Host) { _ = os.Remove(h.Binary()) },
		"binary of another":  func(t *testing.T, h *Host) { write(t, h.Binary(), newPlugin, 0o755) },
		"binary's mode":      func(t *testing.T, h *Host) { write(t, h.Binary(), plugin, 0o700) },
		"binary is a link":   func(_ *testing.T, h *Host) { _ = os.Remove(h.Binary()); _ = os.Symlink(h.Source, h.Binary()) },
		"configuration gone": func(_ *testing.T, h *Host) { _ = os.RemoveAll(h.ConfDir) },
		"configuration":      func(t *testing.T, h *Host) { write(t, h.Confs()[0], "{}", 0o600) },
		"readable by all":    func(_ *testing.T, h *Host) { _ = os.Chmod(h.Confs()[0], 0o644) },
		"copy gone":          func(_ *testing.T, h *Host) { _ = os.Remove(h.Confs()[1]) },
		"new image":          func(t *testing.T, h *Host) { write(t, h.Source, newPlugin, 0o600) },
		"new settings":       func(_ *testing.T, h *Host) { h.Settings.LogLevel = "debug" },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			mustInstall(t, h)
			change(t, h)
			want := 1
			if name == "new settings" {
				want = len(h.Confs())
			}
			if drift, err := h.drift(); err != nil || len(drift) != want {
				t.Errorf("drift %q, %v", drift, err)
			}
			mustInstall(t, h)
		})
	}
}

// What does not run here must not take the place of what does.
func TestInstallTriesBeforeItReplaces(t *testing.T) {
	for name, source := range map[string]string{"no plugin": noPlugin, "of another machine": broken, "fails": "#!/bin/sh\nexit 1\n"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			mustInstall(t, h)
			write(t, h.Source, source, 0o600)
			if err := h.install(t.Context()); err == nil {
				t.Error("installed")
			}
			if got := read(t, h.Binary()); got != plugin {
				t.Errorf("binary is %q", got)
			}
			if got := files(t, h.BinDir); !slices.Equal(got, []string{"nv-ipam"}) {
				t.Errorf("bin has %q", got)
			}
		})
	}
}

func TestForeign(t *testing.T) {
	h := newHost(t)
	for _, step := range []struct {
		name   string
		change func()
		want   bool
	}{
		{"nothing there", func() {}, true},
		{"nv-ipam's", func() { write(t, h.Binary(), "nv-ipam's", 0o755) }, true},
		{"installed", func() { mustInstall(t, h) }, false},
		{"a new image", func() { write(t, h.Source, newPlugin, 0o600) }, false},
		{"the new image, installed", func() { mustInstall(t, h) }, false},
		{"nv-ipam's again", func() { write(t, h.Binary(), "nv-ipam's", 0o755) }, true},
		{"nobody looks after it", func() { h.Source = "" }, false},
	} {
		step.change()
		if got, err := h.Foreign(); err != nil || got != step.want {
			t.Errorf("%s: %t, %v", step.name, got, err)
		}
	}
}

func TestSkip(t *testing.T) {
	h := newHost(t)
	h.Source, h.Settings = "", nil
	mustInstall(t, h)
	if got := files(t, filepath.Dir(h.BinDir)); !slices.Equal(got, []string{"source"}) {
		t.Errorf("there are %q", got)
	}
}

// What an earlier run put there and this one does not goes, unless somebody has
// changed it or the run before was another's.
func TestInstallRemovesStale(t *testing.T) {
	h := newHost(t)
	mustInstall(t, h)
	c := &Credentials{Host: h, Server: "https://x"}
	for path, sum := range map[string]string{c.kubeconfigPath(): dataSum([]byte("k")), c.tokenPath(): "", filepath.Join(h.ConfDir, "edited"): dataSum([]byte("k"))} {
		if err := h.note(path, sum); err != nil {
			t.Fatal(err)
		}
		write(t, path, "k", 0o600)
	}
	write(t, filepath.Join(h.ConfDir, "edited"), "by hand", 0o600)
	write(t, filepath.Join(h.ConfDir, "foreign"), "another's", 0o600)

	h.Beside = c.files()
	mustInstall(t, h)
	if got, want := files(t, h.ConfDir), []string{"edited", "foreign", "nv-ipam.conf", "nv-ipam.kubeconfig", "nv-ipam.token"}; !slices.Equal(got, want) {
		t.Errorf("with credentials: %q, want %q", got, want)
	}
	h.Beside = nil
	mustInstall(t, h)
	if got, want := files(t, h.ConfDir), []string{"edited", "foreign", "nv-ipam.conf"}; !slices.Equal(got, want) {
		t.Errorf("without them: %q, want %q", got, want)
	}
	h.Settings = nil
	mustInstall(t, h)
	if got, want := files(t, h.ConfDir), []string{"edited", "foreign"}; !slices.Equal(got, want) {
		t.Errorf("without a configuration: %q, want %q", got, want)
	}
	if left, err := h.uninstall(); err != nil || !slices.Equal(left, []string{filepath.Join(h.ConfDir, "edited")}) {
		t.Errorf("uninstall: left %q, %v", left, err)
	}
}

// A process that is killed between its note and its write, even twice, leaves what an earlier
// one has written: it is known all the same.
func TestKilledBetweenNoteAndWrite(t *testing.T) {
	h := newHost(t)
	mustInstall(t, h)
	for _, next := range []string{"new", "newer"} {
		for _, path := range append(h.Confs(), h.Binary()) {
			if err := h.note(path, dataSum([]byte(next))); err != nil {
				t.Fatal(err)
			}
		}
		if foreign, err := h.Foreign(); err != nil || foreign {
			t.Errorf("%s: foreign is %t, %v", next, foreign, err)
		}
	}
	edited := h.Confs()[1]
	write(t, edited, "by hand", 0o600)
	if left, err := h.uninstall(); err != nil || !slices.Equal(left, []string{edited}) {
		t.Errorf("uninstall: left %q, %v", left, err)
	}
	for _, path := range []string{h.Binary(), h.Confs()[0]} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
}

// A plugin's own words are the error, and a plugin that does not run says so.
func TestStatus(t *testing.T) {
	const says = "#!/bin/sh\n[ \"$CNI_COMMAND\" = STATUS ] && "
	for _, tc := range []struct{ plugin, want string }{
		{says + "grep -q '\"confDir\":\"CONF\".*\"poolName\"'", ""},
		{says + "echo '{\"code\":50,\"msg\":\"no credentials\",\"details\":\"look there\"}'; exit 1", "no credentials; look there"},
		{says + "echo '{\"code\":50,\"msg\":\"no credentials\"}'; exit 1", "no credentials"},
		{says + "echo '{\"code\":50,\"msg\":\"no credentials\"}'; echo ExpiredToken >&2; exit 1", "no credentials; ExpiredToken"},
		{"#!/bin/sh\necho broken >&2; exit 3", "exit status 3: broken"},
		{broken, "exec format error"},
	} {
		h := newHost(t)
		write(t, h.Binary(), strings.ReplaceAll(tc.plugin, "CONF", h.ConfDir), 0o755)
		err := h.status(t.Context())
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), ": "+tc.want) {
			t.Errorf("%q: %v", tc.plugin, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "STATUS of "+h.Binary()+": ") {
			t.Errorf("does not say who: %v", err)
		}
	}
}

// With a root, the plugin is run in there, with the paths that it has there.
func TestStatusInRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("changing the root directory takes root")
	}
	h := newHost(t)
	h.Root = t.TempDir()
	write(t, filepath.Join(h.Root, "nv-ipam"), "#!/nosuch", 0o755)
	h.BinDir = "/"
	if err := h.status(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("the plugin of the root is not the one that is run: %v", err)
	}
}
