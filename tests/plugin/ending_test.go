// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// reboot makes the hint one of before the node's last start.
func (h *host) reboot(t *testing.T) {
	t.Helper()
	mark := h.hint("claims", "@complete")
	text, err := os.Readlink(mark)
	if errors.Is(err, fs.ErrNotExist) { // it has not been complete since
		text, err = "1/", nil
	}
	format, _, _ := strings.Cut(text, "/")
	remove(t, mark)
	if err := errors.Join(err, os.Symlink(format+"/an-earlier-one", mark)); err != nil {
		t.Fatal(err)
	}
}

// beforeReboot is the one of past in which the hint has entries.
const beforeReboot = "the hint is of before the reboot"

// elsewhere is the one of credentials that are another cluster's, as far as a node can
// tell: what it has no entry of cannot be noted for the right one, and is left to
// the controller.
const elsewhere = "another API server is named, and away"

// past are a node's ways to know nothing, or not enough, when the first DEL comes.
var past = map[string]func(t *testing.T, h *host){
	beforeReboot:                 func(t *testing.T, h *host) { h.reboot(t) },
	"the hint's claims are gone": func(t *testing.T, h *host) { remove(t, h.hint("claims")) },
	"the node has never called":  func(t *testing.T, h *host) { remove(t, h.data()) },
}

// credentials are what makes asking impossible.
var credentials = map[string]func(t *testing.T, path string){
	"the API server is away": func(t *testing.T, path string) {
		rig.WriteKubeconfig(t, path, "https://127.0.0.1:1", env.Config.CAData, token)
	},
	elsewhere:                       deadKubeconfig,
	"the kubeconfig is torn":        func(t *testing.T, path string) { write(t, path, "apiVersion: v1\nkind: Config\nusers: [") },
	"the kubeconfig is empty":       func(t *testing.T, path string) { write(t, path, "") },
	"there is no kubeconfig":        func(t *testing.T, path string) { remove(t, path) },
	"the kubeconfig is a directory": func(t *testing.T, path string) { remove(t, path); mkdir(t, path) },
	"the authorities' file is not there yet": func(t *testing.T, path string) {
		write(t, path, strings.ReplaceAll(kubeconfigOf("/nowhere/ca.crt"), "\t", ""))
	},
}

func kubeconfigOf(caFile string) string {
	return `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1", certificate-authority: ` + caFile + `}}]
contexts: [{name: c, context: {cluster: c, user: c}}]
current-context: c
users: [{name: c, user: {token: t}}]
`
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

// The first DEL after a reboot, or on a node that has lost or never had a hint,
// without anybody to ask: the pod ends, and the next call that can ask frees the
// address.
func TestFirstDelCannotAsk(t *testing.T) {
	t.Parallel()
	for before, forget := range past {
		for fault, spoil := range credentials {
			if fault == elsewhere && before != beforeReboot {
				continue
			}
			t.Run(before+", "+fault, func(t *testing.T) {
				t.Parallel()
				c := newCluster(t)
				c.blocks(t, "a")
				h := c.defaultHost(t, "a")
				h.mustAdd(t, call{container: "c1"})
				h.mustAdd(t, call{container: "stays"})
				forget(t, h)
				spoil(t, h.kubelet())
				inTime(t, "DEL", func() { h.mustRun(t, call{verb: "DEL", container: "c1"}) })
				inTime(t, "DEL again", func() { h.mustRun(t, call{verb: "DEL", container: "c1"}) })
				inTime(t, "DEL of nothing", func() { h.mustRun(t, call{verb: "DEL", container: "never-added"}) })
				remove(t, h.kubelet())
				h.restoreCredentials(t)
				h.mustRun(t, call{verb: "STATUS"})
				h.carryOut(t)
				if got := c.held(t); got != "[10.0.0.3]" {
					t.Errorf("the next call did not free the address: held %s", got)
				}
				h.mustRun(t, call{verb: "CHECK", container: "stays"})
			})
		}
	}
}

// The container of such a DEL comes back before its release was carried out: what
// it gets then is its own and stays so.
func TestContainerComesBackAfterADelThatCouldNotAsk(t *testing.T) {
	t.Parallel()
	for before, forget := range past {
		for _, fault := range []string{"the API server is away", elsewhere, "the kubeconfig is torn"} {
			if fault == elsewhere && before != beforeReboot {
				continue
			}
			for request, args := range map[string]string{"any address": "", "the same address": "IP=10.0.0.2", "another address": "IP=10.0.0.77"} {
				t.Run(before+", "+fault+", "+request, func(t *testing.T) {
					t.Parallel()
					c := newCluster(t)
					c.blocks(t, "a")
					h := c.defaultHost(t, "a")
					h.mustAdd(t, call{container: "c1"})
					forget(t, h)
					credentials[fault](t, h.kubelet())
					h.mustRun(t, call{verb: "DEL", container: "c1"})
					remove(t, h.kubelet())
					h.restoreCredentials(t)
					got := h.mustAdd(t, call{container: "c1", args: args})
					for range 2 {
						h.mustRun(t, call{verb: "STATUS"})
						h.mustRun(t, call{verb: "DEL", container: "never-added"})
						h.mustRun(t, call{verb: "CHECK", container: "c1"})
					}
					want := "[" + strings.TrimSuffix(got[0], "/16") + "]"
					if held := c.held(t); held != want {
						t.Errorf("held %s, want %s", held, want)
					}
					h.mustRun(t, call{verb: "DEL", container: "c1"})
					if held := c.held(t); held != "[]" {
						t.Errorf("held %s", held)
					}
				})
			}
		}
	}
}

// badConf are network configurations that an ADD may refuse.
var badConf = map[string]call{
	"args.cni.ips is a string":         {conf: map[string]any{"args": map[string]any{"cni": map[string]any{"ips": "10.0.0.2"}}}},
	"args.cni.ips is a number":         {conf: map[string]any{"args": map[string]any{"cni": map[string]any{"ips": 7}}}},
	"args.cni.ips has a number":        {conf: map[string]any{"args": map[string]any{"cni": map[string]any{"ips": []any{7}}}}},
	"args.cni.ips has rubbish":         {conf: map[string]any{"args": map[string]any{"cni": map[string]any{"ips": []any{"host"}}}}},
	"args.cni is a list":               {conf: map[string]any{"args": map[string]any{"cni": []string{"x"}}}},
	"args is a string":                 {conf: map[string]any{"args": "x"}},
	"args.cni.poolNames is a string":   {conf: map[string]any{"args": map[string]any{"cni": map[string]any{"poolNames": "p"}}}},
	"allocateIPWithIndex is a string":  {conf: map[string]any{"args": map[string]any{"cni": map[string]any{"allocateIPWithIndex": "5"}}}},
	"allocateIPWithIndex is huge":      {conf: map[string]any{"args": map[string]any{"cni": map[string]any{"allocateIPWithIndex": 1e300}}}},
	"runtimeConfig is a list":          {conf: map[string]any{"runtimeConfig": []int{1}}},
	"runtimeConfig.ips is an object":   {conf: map[string]any{"runtimeConfig": map[string]any{"ips": map[string]any{}}}},
	"deviceID is a number":             {conf: map[string]any{"deviceID": 7}},
	"prevResult is a string":           {conf: map[string]any{"prevResult": "x"}},
	"dns is a list":                    {conf: map[string]any{"dns": []int{1}}},
	"capabilities is a string":         {conf: map[string]any{"capabilities": "ips"}},
	"valid attachments are a string":   {conf: map[string]any{"cni.dev/valid-attachments": "none"}},
	"no cniVersion":                    {conf: map[string]any{"cniVersion": rig.Absent}},
	"no ipam section":                  {conf: map[string]any{"ipam": rig.Absent}},
	"ipam is null":                     {conf: map[string]any{"ipam": nil}},
	"ipam is a string":                 {conf: map[string]any{"ipam": "nv-ipam"}},
	"ipam is a list":                   {conf: map[string]any{"ipam": []string{"nv-ipam"}}},
	"ipam is empty":                    {conf: map[string]any{"ipam": map[string]any{}}},
	"poolName is a list":               {ipam: map[string]any{"poolName": []string{"p"}}},
	"poolName has rubbish":             {ipam: map[string]any{"poolName": "../../x"}},
	"three pools":                      {ipam: map[string]any{"poolName": "p,q,r"}},
	"another pool":                     {ipam: map[string]any{"poolName": "nowhere"}},
	"poolType is vlan":                 {ipam: map[string]any{"poolType": "vlan"}},
	"poolType is a number":             {ipam: map[string]any{"poolType": 1}},
	"forcePoolName is a string":        {ipam: map[string]any{"forcePoolName": "yes"}},
	"forcePoolName without a name":     {ipam: map[string]any{"forcePoolName": true, "poolName": rig.Absent}},
	"poolsNamespace is no namespace":   {ipam: map[string]any{"poolsNamespace": "../x"}},
	"poolsNamespace is another":        {ipam: map[string]any{"poolsNamespace": "default"}},
	"poolsNamespace is a number":       {ipam: map[string]any{"poolsNamespace": 1}},
	"nodeName is no name":              {ipam: map[string]any{"nodeName": "NO NODE/"}},
	"nodeName is another":              {ipam: map[string]any{"nodeName": "b"}},
	"logLevel is warn":                 {ipam: map[string]any{"logLevel": "warn"}},
	"logLevel is a number":             {ipam: map[string]any{"logLevel": 3}},
	"logFile is relative":              {ipam: map[string]any{"logFile": "nv/ipam.log"}},
	"logFile is a directory":           {ipam: map[string]any{"logFile": "/etc"}},
	"logFile is nowhere":               {ipam: map[string]any{"logFile": "/nowhere/at/all"}},
	"logFile cannot be written":        {ipam: map[string]any{"logFile": "/proc/version"}},
	"logFile is full":                  {ipam: map[string]any{"logFile": "/dev/full"}},
	"logFile is a pipe without reader": {ipam: map[string]any{"logFile": "/etc/pipe"}},
	"logFile has a NUL":                {ipam: map[string]any{"logFile": "/var/log/x\x00y"}},
	"dataDir is relative":              {ipam: map[string]any{"dataDir": "../data"}},
	"dataDir is nowhere":               {ipam: map[string]any{"dataDir": "/etc/nowhere"}},
	"dataDir is a file":                {ipam: map[string]any{"dataDir": "/etc/file"}},
	"dataDir cannot be written":        {ipam: map[string]any{"dataDir": "/proc/1"}},
	"confDir is relative":              {ipam: map[string]any{"confDir": "../conf"}},
	"confDir is nowhere":               {ipam: map[string]any{"confDir": "/nowhere"}},
	"confDir is a file":                {ipam: map[string]any{"confDir": "/etc/file"}},
	"kubeconfig is relative":           {ipam: map[string]any{"kubeconfig": "kubelet.conf"}},
}

// badFile are contents of nv-ipam.conf that an ADD may refuse.
var badFile = map[string]string{
	"torn":                      `{"poolsNamespace":"kube`,
	"empty":                     "",
	"white space":               " \n",
	"binary":                    "\x7fELF\x00\x01\xff\xfe",
	"huge":                      `{"x":"` + strings.Repeat("x", 1<<20) + `"}`,
	"null":                      "null",
	"a list":                    "[]",
	"a string":                  `"x"`,
	"two objects":               "{}{}",
	"YAML":                      "poolsNamespace: kube-system\n",
	"poolsNamespace, a number":  `{"poolsNamespace":1}`,
	"dataDir, a list":           `{"dataDir":["/x"]}`,
	"kubeconfig, relative":      `{"kubeconfig":"kubelet.conf"}`,
	"kubeconfig, nowhere":       `{"kubeconfig":"/nowhere/kubelet.conf"}`,
	"dataDir, relative":         `{"dataDir":"data"}`,
	"logLevel, unknown":         `{"logLevel":"loud"}`,
	"with a byte order mark":    "\ufeff{}",
	"deep":                      strings.Repeat("[", 20_000),
	"nodeName, of another type": `{"nodeName":{}}`,
}

// endingHost is a host with two containers, one of which is to end.
func endingHost(t *testing.T) (*cluster, *host) {
	t.Helper()
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.defaultHost(t, "a")
	write(t, filepath.Join(h.root, "etc/file"), "x")
	if err := unix.Mkfifo(filepath.Join(h.root, "etc/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.mustAdd(t, call{container: "c1"})
	h.mustAdd(t, call{container: "stays"})
	return c, h
}

// A DEL needs a container, an interface and a disk: whatever its configuration is
// like, it succeeds, and the address is free at the latest when a call with a good
// configuration has run.
func TestDelWithAnyConfiguration(t *testing.T) {
	t.Parallel()
	for name, bad := range badConf {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, h := endingHost(t)
			h.reboot(t) // it has to find out what the container holds
			bad.verb, bad.container = "DEL", "c1"
			inTime(t, "DEL", func() { h.mustRun(t, bad) })
			h.mustRun(t, call{verb: "STATUS"})
			h.carryOut(t)
			if got := c.held(t); got != "[10.0.0.3]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

func TestDelWithAnyFile(t *testing.T) {
	t.Parallel()
	for name, content := range badFile {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, h := endingHost(t)
			write(t, filepath.Join(h.dir, "nv-ipam.conf"), content)
			h.delAndMend(t, c)
		})
	}
	t.Run("a directory", func(t *testing.T) {
		t.Parallel()
		c, h := endingHost(t)
		remove(t, filepath.Join(h.dir, "nv-ipam.conf"))
		mkdir(t, filepath.Join(h.dir, "nv-ipam.conf"))
		h.delAndMend(t, c)
	})
	t.Run("a pipe without a writer", func(t *testing.T) {
		t.Parallel()
		c, h := endingHost(t)
		remove(t, filepath.Join(h.dir, "nv-ipam.conf"))
		if err := unix.Mkfifo(filepath.Join(h.dir, "nv-ipam.conf"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.delAndMend(t, c)
	})
	t.Run("gone, with its directory", func(t *testing.T) {
		t.Parallel()
		c, h := endingHost(t)
		remove(t, h.dir)
		h.delAndMend(t, c)
	})
}

// The credentials do not say whose they are, and the configuration of a DEL names
// another node than that of the ADD, or none: the node holds what it held, and its
// calls go on to know that.
func TestDelUnderAnotherNodeName(t *testing.T) {
	t.Parallel()
	for name, file := range map[string]string{
		"another": `{"poolsNamespace":"NS","nodeName":"b"}`,
		"none":    `{"poolsNamespace":"NS"}`,
		"torn":    `{"poolsNamespace":"NS`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.defaultHost(t, "a")
			admin, err := os.ReadFile(env.Kubeconfig)
			if err != nil {
				t.Fatal(err)
			}
			write(t, h.kubelet(), string(admin))
			h.mustAdd(t, call{container: "c1"})
			h.mustAdd(t, call{container: "stays"})
			h.reboot(t)
			shift(t, h.data(), -time.Hour)
			write(t, filepath.Join(h.dir, "nv-ipam.conf"), strings.ReplaceAll(file, "NS", c.NS))
			h.delAndMend(t, c)
			h.mustRun(t, call{verb: "CHECK", container: "stays"})
			h.mustRun(t, call{verb: "DEL", container: "stays"})
			if got := c.held(t); got != "[]" {
				t.Errorf("held %s: the hint believes to be complete, and is not", got)
			}
		})
	}
}

// delAndMend runs a DEL while the node's file is bad, and another call when it is
// good again.
func (h *host) delAndMend(t *testing.T, c *cluster) {
	t.Helper()
	inTime(t, "DEL", func() { h.mustRun(t, call{verb: "DEL", container: "c1"}) })
	remove(t, filepath.Join(h.dir, "nv-ipam.conf"))
	mkdir(t, h.dir)
	h.configure(t, h.settings())
	h.mustRun(t, call{verb: "STATUS"})
	h.carryOut(t)
	if got := c.held(t); got != "[10.0.0.3]" {
		t.Errorf("held %s", got)
	}
}

// The log never refuses a pod, and what is printed for the runtime is the result and
// nothing else.
func TestAddWithAnyLog(t *testing.T) {
	t.Parallel()
	for name, one := range badConf {
		if !strings.HasPrefix(name, "log") || name == "logLevel is a number" { // ADD may refuse a wrong type
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, h := endingHost(t)
			one.verb, one.container = "ADD", "c2"
			var out []byte
			inTime(t, "ADD", func() { out = h.mustRun(t, one) })
			if got := parseResult(t, out); len(got) != 1 || got[0] != "10.0.0.4/16" {
				t.Errorf("got %v", got)
			}
			one.verb = "CHECK"
			h.mustRun(t, one)
			one.verb = "DEL"
			h.mustRun(t, one)
			if got := c.held(t); got != "[10.0.0.2 10.0.0.3]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

// Where the node's data is may be said by the network alone, or by a file that only
// the network names. A DEL whose configuration was cut down finds it, with and
// without an API server.
func TestDelFindsTheNodesData(t *testing.T) {
	t.Parallel()
	stripped := map[string]any{"ipam": map[string]any{"type": "nv-ipam"}}
	for where, add := range map[string]struct {
		ipam map[string]any
		file string // /etc/other/nv-ipam.conf; NS and NODE are replaced
	}{
		"dataDir in the network": {ipam: map[string]any{"dataDir": "/var/lib/other"}},
		"confDir in the network": {ipam: map[string]any{"confDir": "/etc/other"}, file: `{"poolsNamespace":"NS","nodeName":"NODE"}`},
		"confDir in the network, and dataDir in its file": {ipam: map[string]any{"confDir": "/etc/other"},
			file: `{"poolsNamespace":"NS","nodeName":"NODE","dataDir":"/var/lib/other"}`},
		"both in the network": {ipam: map[string]any{"confDir": "/etc/other", "dataDir": "/var/lib/other"},
			file: `{"poolsNamespace":"NS","nodeName":"NODE","dataDir":"/var/lib/third"}`},
		"poolsNamespace in the network": {},
	} {
		for _, away := range []bool{false, true} {
			name := where
			if away {
				name += ", and the API server is away"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := newCluster(t)
				c.blocks(t, "a")
				h := c.defaultHost(t, "a")
				h.configure(t, map[string]any{}) // says nothing
				mkdir(t, filepath.Join(h.root, "etc/other"))
				write(t, filepath.Join(h.root, "etc/other/nv-ipam.conf"), strings.NewReplacer("NS", c.NS, "NODE", "a").Replace(first(add.file, "{}")))
				ipam := map[string]any{}
				if add.file == "" {
					ipam = map[string]any{"poolsNamespace": c.NS, "nodeName": "a"}
				}
				rig.Merge(ipam, add.ipam)
				h.mustAdd(t, call{container: "c1", ipam: ipam})
				h.mustAdd(t, call{container: "stays", ipam: ipam})
				if away {
					rig.WriteKubeconfig(t, h.kubelet(), "https://127.0.0.1:1", env.Config.CAData, token)
				}
				h.mustRun(t, call{verb: "DEL", container: "c1", conf: stripped})
				if away {
					h.restoreCredentials(t)
					h.mustRun(t, call{verb: "STATUS", ipam: ipam})
				}
				if got := c.held(t); got != "[10.0.0.3]" {
					t.Errorf("held %s", got)
				}
			})
		}
	}
}

// The file that named the node's data is torn at the DEL, and whole again later: the DEL, or a later
// call, finds what the ADD has left there.
func TestDelFindsTheNodesDataWithATornFile(t *testing.T) {
	t.Parallel()
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("the API server is away: %t", away), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.defaultHost(t, "a")
			settings := h.settings()
			settings["dataDir"] = "/var/lib/other"
			h.configure(t, settings)
			h.mustAdd(t, call{container: "c1"})
			h.mustAdd(t, call{container: "stays"})
			write(t, filepath.Join(h.dir, "nv-ipam.conf"), `{"poolsName`)
			if away {
				rig.WriteKubeconfig(t, h.kubelet(), "https://127.0.0.1:1", env.Config.CAData, token)
			}
			h.mustRun(t, call{verb: "DEL", container: "c1"})
			if away {
				h.restoreCredentials(t)
			}
			h.configure(t, settings)
			h.mustRun(t, call{verb: "STATUS"})
			if got := c.held(t); got != "[10.0.0.3]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// DELs that name nothing, or what nobody can have, end as well.
func TestDelOfOddNames(t *testing.T) {
	t.Parallel()
	c, h := endingHost(t)
	for _, name := range []string{"x", strings.Repeat("c", 256), strings.Repeat("c", 5000), "a.b_c-d"} {
		h.mustRun(t, call{verb: "DEL", container: name})
		h.mustRun(t, call{verb: "DEL", container: name, ifName: "another"})
	}
	rig.WriteKubeconfig(t, h.kubelet(), "https://127.0.0.1:1", env.Config.CAData, token)
	h.reboot(t)
	for _, name := range []string{"x", strings.Repeat("c", 256), strings.Repeat("c", 5000)} {
		h.mustRun(t, call{verb: "DEL", container: name})
	}
	h.restoreCredentials(t)
	h.mustRun(t, call{verb: "STATUS"})
	if got := c.held(t); got != "[10.0.0.2 10.0.0.3]" {
		t.Errorf("held %s", got)
	}
	log, err := os.ReadFile(filepath.Join(h.root, "var/log/nv-ipam-cni.log"))
	if err != nil || !bytes.Contains(log, []byte("DEL")) {
		t.Errorf("log %q, %v", log, err)
	}
}
