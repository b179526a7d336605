// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

func init() { installedSettings = "/nonexistent" } // what this machine has does not matter

const podArgs = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ml;K8S_POD_NAME=train-0;K8S_POD_UID=u-1;K8S_POD_INFRA_CONTAINER_ID=c1"

// request runs a network configuration through all that an ADD does before it
// asks the API server. CONFDIR stands for an empty directory.
func request(t *testing.T, conf, cniArgs string) (claim.Request, error) {
	t.Helper()
	conf = strings.ReplaceAll(conf, "CONFDIR", t.TempDir())
	n, err := parseNetwork([]byte(conf))
	if err != nil {
		return claim.Request{}, err
	}
	return n.request(&skel.CmdArgs{ContainerID: "c1", IfName: "net1", Args: cniArgs})
}

func ippools(names ...string) []v1alpha1.PoolReference {
	var refs []v1alpha1.PoolReference
	for _, n := range names {
		refs = append(refs, v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: n})
	}
	return refs
}

func TestPools(t *testing.T) {
	cidr := []v1alpha1.PoolReference{{Kind: v1alpha1.PoolKindCIDRPool, Name: "rail1"}}
	for _, tc := range []struct {
		name, ipam, args string
		want             []v1alpha1.PoolReference
		err              string
	}{
		{name: "network's name", want: ippools("net")},
		{name: "poolName", ipam: `"poolName":"a"`, want: ippools("a")},
		{name: "two pools", ipam: `"poolName":"a,b"`, want: ippools("a", "b")},
		{name: "two pools with a space", ipam: `"poolName":"a, b"`, want: ippools("a", "b")},
		{name: "three pools", ipam: `"poolName":"a,b,c"`, err: "pool field can't contain more then two entries"},
		{name: "three pools in args", args: `"poolNames":["a","b","c"]`, err: "pool field can't contain more then two entries"},
		{name: "one pool twice", ipam: `"poolName":"a,a"`, err: `pool "a" is named twice`},
		{name: "empty entry", ipam: `"poolName":"a,"`, err: `"" must be a valid CNI network name`},
		{name: "path for a name", ipam: `"poolName":"../etc"`, err: `"../etc" must be a valid CNI network name`},
		{name: "label", ipam: `"poolName":"rail1-{topology.kubernetes.io/rack}"`, want: ippools("rail1-{topology.kubernetes.io/rack}")},
		{name: "labels in two pools", ipam: `"poolName":"{row}-{rack}, six-{rack}"`, want: ippools("{row}-{rack}", "six-{rack}")},
		{name: "label in args", args: `"poolNames":["{rack}"]`, want: ippools("{rack}")},
		{name: "label that is not closed", ipam: `"poolName":"rail1-{rack"`, err: "poolName: \"rail1-{rack\" has a brace too many"},
		{name: "Go template", ipam: `"poolName":"rail1-{{.rack}}"`, err: "has a brace too many"},
		{name: "label with a comma", ipam: `"poolName":"{a,b}"`, err: "has a brace too many"},
		{name: "empty label", ipam: `"poolName":"rail1-{}"`, err: "is not the key of a label"},
		{name: "braces in poolType", ipam: `"poolType":"{type}"`, err: "unsupported poolType {type}"},
		{name: "args win over poolName", ipam: `"poolName":"a"`, args: `"poolNames":["b"]`, want: ippools("b")},
		{name: "forcePoolName without a name", ipam: `"forcePoolName":true`, err: "ipam.poolName is required because forcePoolName is set"},
		{name: "forcePoolName with a name", ipam: `"forcePoolName":true,"poolName":"a"`, want: ippools("a")},
		{name: "cidrpool", ipam: `"poolType":"cidrpool","poolName":"rail1"`, want: cidr},
		{name: "CIDRPool in any case", ipam: `"poolType":"CidrPool","poolName":"rail1"`, want: cidr},
		{name: "ippool said", ipam: `"poolType":"ippool"`, want: ippools("net")},
		{name: "args win over poolType", ipam: `"poolType":"ippool"`, args: `"poolType":"cidrpool","poolNames":["rail1"]`, want: cidr},
		{name: "another type", ipam: `"poolType":"vlan"`, err: "unsupported poolType vlan, supported values: ippool, cidrpool"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sep := ""
			if tc.ipam != "" {
				sep = ","
			}
			conf := `{"cniVersion":"1.0.0","name":"net","type":"macvlan","ipam":{"type":"nv-ipam","confDir":"CONFDIR"` + sep + tc.ipam + `},"args":{"cni":{` + tc.args + `}}}`
			got, err := request(t, conf, podArgs)
			checkErr(t, err, tc.err)
			if tc.err == "" && !reflect.DeepEqual(got.Pools, tc.want) {
				t.Errorf("pools = %v, want %v", got.Pools, tc.want)
			}
		})
	}
}

func TestWant(t *testing.T) {
	index := 3
	for _, tc := range []struct {
		name, conf, env string // conf: further top-level keys
		want            pool.Want
		err             string
	}{
		{name: "nothing"},
		{name: "runtimeConfig", conf: `"runtimeConfig":{"ips":["10.0.0.5"]}`, want: addresses("10.0.0.5")},
		{name: "args.cni", conf: `"args":{"cni":{"ips":["10.0.0.5"]}}`, want: addresses("10.0.0.5")},
		{name: "CNI_ARGS", env: "IP=10.0.0.5", want: addresses("10.0.0.5")},
		{name: "prefix length in runtimeConfig", conf: `"runtimeConfig":{"ips":["10.0.0.5/24"]}`, want: addresses("10.0.0.5")},
		{name: "prefix length in args.cni", conf: `"args":{"cni":{"ips":["10.0.0.5/24"]}}`, want: addresses("10.0.0.5")},
		{name: "prefix length in CNI_ARGS", env: "IP=10.0.0.5/24", want: addresses("10.0.0.5")},
		{name: "several in CNI_ARGS", env: "IP=10.0.0.5,fd00::5/64", want: addresses("10.0.0.5", "fd00::5")},
		{name: "several in runtimeConfig", conf: `"runtimeConfig":{"ips":["10.0.0.5","fd00::5"]}`, want: addresses("10.0.0.5", "fd00::5")},
		{name: "runtimeConfig wins over args.cni", conf: `"runtimeConfig":{"ips":["10.0.0.5"]},"args":{"cni":{"ips":["10.0.0.6"]}}`, want: addresses("10.0.0.5")},
		{name: "args.cni wins over CNI_ARGS", conf: `"args":{"cni":{"ips":["10.0.0.6"]}}`, env: "IP=10.0.0.7", want: addresses("10.0.0.6")},
		{name: "runtimeConfig wins over CNI_ARGS", conf: `"runtimeConfig":{"ips":["10.0.0.5"]}`, env: "IP=10.0.0.7", want: addresses("10.0.0.5")},
		{name: "empty CNI_ARGS IP", env: "IP="},
		{name: "IPv4 in IPv6 notation", env: "IP=::ffff:10.0.0.5", want: addresses("10.0.0.5")},
		{name: "not canonical", env: "IP=FD00:0::0:5", want: addresses("fd00::5")},
		{name: "rubbish in runtimeConfig", conf: `"runtimeConfig":{"ips":["10.0.0"]}`, err: `static IP request contains invalid IP address: "10.0.0"`},
		{name: "rubbish in args.cni", conf: `"args":{"cni":{"ips":["x"]}}`, err: `static IP request contains invalid IP address: "x"`},
		{name: "rubbish in CNI_ARGS", env: "IP=10.0.0.5,x", err: `CNI_ARGS: IP argument contains invalid IP address: "x"`},
		{name: "zone", env: "IP=fe80::1%eth0", err: "CNI_ARGS: IP argument contains invalid IP address"},
		{name: "gateway", conf: `"args":{"cni":{"allocateDefaultGateway":true}}`, want: pool.Want{DefaultGateway: true}},
		{name: "index", conf: `"args":{"cni":{"allocateIPWithIndex":3}}`, want: pool.Want{Index: &index}},
		{name: "negative index", conf: `"args":{"cni":{"allocateIPWithIndex":-1}}`, err: "allocateIPWithIndex can't be negative"},
		{name: "gateway and address", conf: `"args":{"cni":{"allocateDefaultGateway":true,"ips":["10.0.0.5"]}}`, err: "allocateDefaultGateway can't be used together with static IP allocation"},
		{name: "gateway and address in CNI_ARGS", conf: `"args":{"cni":{"allocateDefaultGateway":true}}`, env: "IP=10.0.0.5", err: "allocateDefaultGateway can't be used together with static IP allocation"},
		{name: "index and address", conf: `"args":{"cni":{"allocateIPWithIndex":0,"ips":["10.0.0.5"]}}`, err: "allocateIPWithIndex can't be used together with static IP allocation"},
		{name: "gateway and index", conf: `"args":{"cni":{"allocateDefaultGateway":true,"allocateIPWithIndex":0}}`, err: "allocateDefaultGateway can't be used together with allocateIPWithIndex"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conf := `{"cniVersion":"0.3.1","name":"net","type":"macvlan","ipam":{"type":"nv-ipam","confDir":"CONFDIR"}`
			if tc.conf != "" {
				conf += "," + tc.conf
			}
			got, err := request(t, conf+"}", strings.TrimSuffix(podArgs+";"+tc.env, ";"))
			checkErr(t, err, tc.err)
			if tc.err == "" && !reflect.DeepEqual(got.Want, tc.want) {
				t.Errorf("want = %+v, want %+v", got.Want, tc.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	const conf = `{"cniVersion":"1.1.0","name":"net","type":"host-device","deviceID":"0000:03:00.2","ipam":{"type":"nv-ipam","confDir":"CONFDIR"}}`
	got, err := request(t, conf, podArgs)
	if err != nil {
		t.Fatal(err)
	}
	want := claim.Request{
		Attachment: hint.Attachment{ContainerID: "c1", Interface: "net1"},
		Pools:      ippools("net"),
		Network:    "net",
		Pod:        v1alpha1.PodReference{Namespace: "ml", Name: "train-0", UID: "u-1"},
		DeviceID:   "0000:03:00.2",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("request = %+v\nwant      %+v", got, want)
	}
	for _, tc := range []struct{ name, args, err string }{
		{"no UID", "K8S_POD_NAMESPACE=ml;K8S_POD_NAME=train-0", ""},
		{"no name", "K8S_POD_NAMESPACE=ml", "CNI_ARGS: K8S_POD_NAME is not provided by container runtime"},
		{"no namespace", "K8S_POD_NAME=train-0", "CNI_ARGS: K8S_POD_NAMESPACE is not provided by container runtime"},
		{"nothing", "", "CNI_ARGS: K8S_POD_NAME is not provided by container runtime"},
		{"not pairs", "K8S_POD_NAME", "CNI_ARGS: "},
		{"no pod's name", "K8S_POD_NAMESPACE=ml;K8S_POD_NAME=Train_0", `CNI_ARGS: K8S_POD_NAME: "Train_0": a lowercase RFC 1123 subdomain`},
		{"no namespace's name", "K8S_POD_NAMESPACE=a.b;K8S_POD_NAME=train-0", `CNI_ARGS: K8S_POD_NAMESPACE: "a.b": must not contain dots`},
		{"a UID with a blank", podArgs + ";K8S_POD_UID=a b", `CNI_ARGS: K8S_POD_UID: "a b" has characters`},
		{"a long UID", podArgs + ";K8S_POD_UID=" + strings.Repeat("u", 65), "CNI_ARGS: K8S_POD_UID has 65 characters, more than 64"},
	} {
		_, err := request(t, conf, tc.args)
		t.Run(tc.name, func(t *testing.T) { checkErr(t, err, tc.err) })
	}
	for conf, want := range map[string]string{
		`{"name":"` + strings.Repeat("n", 254) + `","ipam":{"poolName":"p"}}`:                "name has 254 characters, more than 253",
		`{"name":"n","deviceID":"` + strings.Repeat("d", 254) + `","ipam":{"poolName":"p"}}`: "deviceID has 254 characters, more than 253",
		`{"name":"n","runtimeConfig":{"deviceID":"0000:03:00.2 x"},"ipam":{"poolName":"p"}}`: `deviceID: "0000:03:00.2 x" has characters`,
		`{"name":"n","args":"x","ipam":{"poolName":"p"}}`:                                    "network configuration is not valid: args must not be a JSON string",
		`{"name":"n","runtimeConfig":{"ips":[1]},"ipam":{"poolName":"p"}}`:                   "runtimeConfig.ips must not be a JSON number",
	} {
		_, err := request(t, conf, podArgs)
		checkErr(t, err, want)
	}
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, confFile)
	write := func(t *testing.T, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parse := func(ipam string) (Settings, error) {
		n, err := parseNetwork([]byte(`{"name":"net","ipam":{"type":"nv-ipam","confDir":"` + dir + `"` + ipam + `}}`))
		if err != nil {
			return Settings{}, err
		}
		return n.IPAM, nil
	}
	t.Run("defaults", func(t *testing.T) {
		s, err := parse("")
		checkErr(t, err, "")
		want := Settings{
			Type: "nv-ipam", PoolType: "IPPool", ConfDir: dir, LogFile: "/var/log/nv-ipam-cni.log", LogLevel: "info",
			PoolsNamespace: "kube-system", DataDir: "/var/lib/cni/nv-ipam",
		}
		if s != want {
			t.Errorf("settings = %+v\nwant       %+v", s, want)
		}
	})
	t.Run("file fills what stdin leaves empty", func(t *testing.T) {
		write(t, `{"poolName":"file","poolType":"cidrpool","forcePoolName":true,"logFile":"/f","logLevel":"debug","kubeconfig":"/k","poolsNamespace":"ns","nodeName":"n","dataDir":"/d","lossGrace":"5m","daemonSocket":"unix:///x","daemonCallTimeoutSeconds":5}`)
		s, err := parse(`,"poolName":"stdin","logLevel":"error"`)
		checkErr(t, err, "")
		if s.ForcePoolName == nil || !*s.ForcePoolName {
			t.Error("forcePoolName of the file is lost")
		}
		s.ForcePoolName = nil
		want := Settings{
			Type: "nv-ipam", PoolName: "stdin", PoolType: "cidrpool", ConfDir: dir, LogFile: "/f", LogLevel: "error",
			Kubeconfig: "/k", PoolsNamespace: "ns", NodeName: "n", DataDir: "/d", LossGrace: "5m",
		}
		if s != want {
			t.Errorf("settings = %+v\nwant       %+v", s, want)
		}
		if got := timeOf(s.LossGrace); got != 5*time.Minute {
			t.Errorf("the grace after a loss is %v", got)
		}
	})
	t.Run("a grace that is none", func(t *testing.T) {
		for _, text := range []string{"soon", "-3m", "0"} {
			_, err := parse(`,"lossGrace":"` + text + `"`)
			checkErr(t, err, "ipam.lossGrace")
		}
	})
	t.Run("stdin can undo forcePoolName", func(t *testing.T) {
		s, err := parse(`,"forcePoolName":false`)
		checkErr(t, err, "")
		if *s.ForcePoolName {
			t.Error("false on stdin was taken for absent")
		}
	})
	t.Run("the installer's copy", func(t *testing.T) {
		defer func(path string) { installedSettings = path }(installedSettings)
		installedSettings = filepath.Join(t.TempDir(), confFile)
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		must(os.WriteFile(installedSettings, []byte(`{"poolsNamespace":"copy"}`), 0o600))
		s, err := parse("")
		checkErr(t, err, "")
		must(os.Remove(file))
		copied, err := parse("")
		checkErr(t, err, "")
		if s.PoolsNamespace != "ns" || copied.PoolsNamespace != "copy" {
			t.Errorf("namespace %q, and without the file %q", s.PoolsNamespace, copied.PoolsNamespace)
		}
		must(os.WriteFile(installedSettings, []byte(`{`), 0o600))
		_, err = parse("")
		checkErr(t, err, installedSettings+" is not valid")
	})
	t.Run("torn file", func(t *testing.T) {
		write(t, `{"poolName":`)
		_, err := parse("")
		checkErr(t, err, file+" is not valid")
	})
	t.Run("torn stdin", func(t *testing.T) {
		_, err := parseNetwork([]byte(`{"name":`))
		checkErr(t, err, "network configuration is not valid")
	})
}

func TestErrorCodes(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		code uint
	}{
		{"configuration", invalid(errors.New("x")), 7},
		{"no credentials", fmt.Errorf("x: %w", credentialsError{errors.New("y")}), 7},
		{"request", &pool.RequestError{Message: "x"}, 7},
		{"exhausted", claim.ErrExhausted, 11},
		{"pool not there yet", claim.ErrPoolNotFound, 11},
		{"in use", &ledger.InUseError{Holder: &v1alpha1.IPAllocation{}}, 11},
		{"unavailable", ledger.ErrUnavailable, 11},
		{"STATUS", ledger.ErrUnavailable, 50},
		{"STATUS", credentialsError{errors.New("x")}, 50},
		{"STATUS", invalid(errors.New("x")), 7},
		{"CHECK", claim.ErrNotHeld, 100},
		{"wrapped", errors.Join(&pool.RequestError{Message: "x"}, errors.New("y")), 7},
	} {
		var got *types.Error
		if !errors.As(cniError(tc.name, tc.err), &got) || got.Code != tc.code {
			t.Errorf("%s: %v has code %d, want %d", tc.name, tc.err, got.Code, tc.code)
		}
	}
}

func addresses(texts ...string) pool.Want {
	var w pool.Want
	for _, s := range texts {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(s))
	}
	return w
}

// checkErr wants err to contain text, or to be nil where text is empty.
func checkErr(t *testing.T, err error, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Errorf("error %v", err)
	case text != "" && (err == nil || !strings.Contains(err.Error(), text)):
		t.Errorf("error %v, want one with %q", err, text)
	}
}

// Whether pods may keep addresses, a configuration says at its top or in ipam, and a node's
// nv-ipam.conf if it says nothing.
func TestAllowPersistentIPs(t *testing.T) {
	args := &skel.CmdArgs{ContainerID: "c", IfName: "net1", Args: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p"}
	for _, tc := range []struct {
		top, ipam, file string
		want            bool
	}{
		{"", "", "", false}, {"true", "", "", true}, {"", "true", "", true}, {"", "", "true", true},
		{"false", "true", "true", false}, {"", "false", "true", false}, {"true", "false", "", true},
	} {
		dir := t.TempDir()
		key := func(value string) string {
			if value == "" {
				return ""
			}
			return `,"allowPersistentIPs":` + value
		}
		if err := os.WriteFile(filepath.Join(dir, confFile), []byte(`{"logLevel":"info"`+key(tc.file)+`}`), 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := parseNetwork([]byte(`{"name":"net"` + key(tc.top) + `,"ipam":{"type":"nv-ipam","poolName":"p","confDir":"` + dir + `"` + key(tc.ipam) + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		req, err := n.request(args)
		if err != nil || req.Persistent != tc.want {
			t.Errorf("%+v: %t, %v", tc, req.Persistent, err)
		}
	}
}
