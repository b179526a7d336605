// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	k8stypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Defaults of the configuration. They are nv-ipam's. The data directory may be shared with it: its
// file there is "store", which the hint never writes.
const (
	defaultConfDir  = "/etc/cni/net.d/nv-ipam.d"
	confFile        = "nv-ipam.conf"
	defaultLogFile  = "/var/log/nv-ipam-cni.log"
	defaultLogLevel = "info"
	// defaultNamespace is where nv-ipam looks for pools when it is not told.
	defaultNamespace = "kube-system"
	DefaultDataDir   = "/var/lib/cni/nv-ipam"
)

// installedSettings is a copy of nv-ipam.conf. It is a variable for tests.
var installedSettings = filepath.Join(DefaultDataDir, confFile)

// Limits in bytes: maxConfig for stdin (a GC may name some thousand attachments) and for
// nv-ipam.conf, maxArgs for CNI_ARGS. Larger input is a mistake or an attack.
const (
	maxConfig = 512 << 10
	maxArgs   = 64 << 10
)

// maxContainerID is the longest container ID that an IPAllocation can have, in bytes.
const maxContainerID = 256

// maxPools is how many pools one interface may use: one for each address family.
const maxPools = 2

// Settings are the keys of the "ipam" section and of nv-ipam.conf. A key that is empty in
// the first is taken from the second, then from the defaults. Unknown keys are ignored,
// among them nv-ipam's daemonSocket and daemonCallTimeoutSeconds: there is no daemon.
type Settings struct {
	Type string `json:"type,omitempty"`
	// PoolName is one pool, or two separated by a comma. If it is empty, the network's
	// name is used, unless ForcePoolName is set. {LABEL} in it stands for the value of a
	// label of this node's Node object.
	PoolName      string `json:"poolName,omitempty"`
	PoolType      string `json:"poolType,omitempty"` // "ippool" or "cidrpool", in any case
	ForcePoolName *bool  `json:"forcePoolName,omitempty"`
	ConfDir       string `json:"confDir,omitempty"`
	LogFile       string `json:"logFile,omitempty"`
	LogLevel      string `json:"logLevel,omitempty"`
	// Kubeconfig is the file with the credentials. If it is empty, the plugin searches
	// for one: see findCredentials.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// PoolsNamespace is the namespace of the pools and their allocations.
	PoolsNamespace string `json:"poolsNamespace,omitempty"`
	// NodeName is the name of this node's Node object. It is used only if the
	// credentials do not name the node. The default is the hostname in lower case.
	NodeName string `json:"nodeName,omitempty"`
	// DataDir is the directory in which this node keeps its hint.
	DataDir string `json:"dataDir,omitempty"`
	// LossGrace is claim.Claimer's, as time.ParseDuration reads it: "5m". If it is empty,
	// it is claim.DefaultLossGrace.
	LossGrace string `json:"lossGrace,omitempty"`
	// ReleaseCooldown is claim.Claimer's, in the same form. If it is empty, it is none.
	ReleaseCooldown string `json:"releaseCooldown,omitempty"`
	// AllowPersistentIPs says that a pod which names an IPAMClaim keeps its addresses. Others
	// read this key at the top of a configuration, and so does this plugin (network). In a list
	// of plugins no runtime passes that on, so it may stand here.
	AllowPersistentIPs *bool `json:"allowPersistentIPs,omitempty"`
}

// network is the network configuration from stdin.
type network struct {
	types.NetConf

	IPAM     Settings `json:"ipam"`
	DeviceID string   `json:"deviceID"`
	// AllowPersistentIPs is that of Settings, and counts before it.
	AllowPersistentIPs *bool `json:"allowPersistentIPs"`
	Runtime            struct {
		IPs      []string `json:"ips"`
		DeviceID string   `json:"deviceID"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs                    []string `json:"ips"`
			PoolNames              []string `json:"poolNames"`
			PoolType               string   `json:"poolType"`
			AllocateDefaultGateway bool     `json:"allocateDefaultGateway"`
			AllocateIPWithIndex    *int     `json:"allocateIPWithIndex"`
		} `json:"cni"`
	} `json:"args"`
	// dataDirs are the directories that a call would use instead of IPAM.DataDir if its
	// configuration did not name that: for example a DEL with a shortened configuration, or
	// one that finds nv-ipam.conf torn.
	dataDirs []string
	// stdin is the configuration, unparsed.
	stdin []byte

	// ValidAttachments is nil if the runtime does not say which attachments are valid.
	// An empty list says that none is.
	ValidAttachments *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
}

// environment is what CNI_ARGS may contain.
type environment struct {
	types.CommonArgs

	IP                types.UnmarshallableString
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
	// The container ID again; CNI_CONTAINERID is used.
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
}

// parseNetwork reads the network configuration and completes its settings. On an error it
// also returns what it could read, with which a DEL continues.
func parseNetwork(stdin []byte) (*network, error) {
	n := &network{stdin: stdin}
	var errs []error
	if len(stdin) > maxConfig {
		errs = append(errs, fmt.Errorf("network configuration has %d bytes, more than %d", len(stdin), maxConfig))
	} else if err := json.Unmarshal(stdin, n); err != nil {
		errs = append(errs, fmt.Errorf("network configuration is not valid: %w", inWords(err)))
	}
	if n.CNIVersion == "" {
		n.CNIVersion = "0.1.0" // which an absent version means, by the specification
	}
	own := n.IPAM
	n.IPAM.ConfDir = first(n.IPAM.ConfDir, defaultConfDir)
	errs = append(errs, n.IPAM.complete(), n.IPAM.checkPaths(), n.IPAM.checkTimes())
	n.findDataDirs(own)
	return n, errors.Join(errs...)
}

// inWords names the key of a JSON value that has the wrong type, in place of this program's types.
func inWords(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) && wrong.Field != "" {
		return fmt.Errorf("%s must not be a JSON %s", wrong.Field, wrong.Value)
	}
	return err
}

// complete fills empty settings from nv-ipam.conf, then from the defaults.
func (s *Settings) complete() error {
	file, err := readSettings(s.ConfDir)
	s.fillFrom(file)
	s.fillFrom(Settings{
		LogFile: defaultLogFile, LogLevel: defaultLogLevel, PoolType: string(pool.DefaultKind),
		PoolsNamespace: defaultNamespace, DataDir: DefaultDataDir,
	})
	return err
}

// readSettings reads nv-ipam.conf; if there is none, the copy that the installer keeps in the
// default data directory: network-operator may mount another directory of the host where the
// installer writes, and the plugin then looks in vain. It succeeds if there is neither.
func readSettings(confDir string) (file Settings, err error) {
	path := filepath.Join(confDir, confFile)
	data, err := readConfig(path)
	if errors.Is(err, fs.ErrNotExist) {
		path = installedSettings
		data, err = readConfig(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return file, nil
	case err != nil:
		return file, fmt.Errorf("reading %s: %w", path, err)
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return file, fmt.Errorf("%s is not valid: %w", path, inWords(err))
	}
	return file, nil
}

// findDataDirs sets dataDirs: the default, for calls that cannot read the nv-ipam.conf which named
// another; and, if the configuration itself names a data directory or a directory for nv-ipam.conf,
// what the files say.
func (n *network) findDataDirs(own Settings) {
	n.addDataDir(DefaultDataDir)
	if own.DataDir == "" && own.ConfDir == "" {
		return
	}
	confDirs := []string{defaultConfDir}
	if own.ConfDir != "" {
		confDirs = append(confDirs, own.ConfDir)
	}
	for _, confDir := range confDirs {
		file, _ := readSettings(confDir)
		n.addDataDir(first(file.DataDir, DefaultDataDir))
	}
}

func (n *network) addDataDir(dir string) {
	if dir != n.IPAM.DataDir && !slices.Contains(n.dataDirs, dir) {
		n.dataDirs = append(n.dataDirs, dir)
	}
}

// registerDataDir registers the data directory in use in the others, so that calls which
// use those find it.
func (n *network) registerDataDir(log *slog.Logger) {
	for _, dir := range n.dataDirs {
		hint.Register(dir, n.IPAM.DataDir, log)
	}
}

// readConfig reads a regular file of at most maxConfig bytes.
func readConfig(path string) ([]byte, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("it has more than %d bytes", maxConfig)
	}
	return data, err
}

// ErrNotRegular says that what is there is a directory, a pipe, a socket or a device.
var ErrNotRegular = errors.New("not a regular file")

// OpenRegular opens a regular file for reading. It waits for nobody, not for the writer of a pipe
// either.
func OpenRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	notRegular := &fs.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	if errors.Is(err, syscall.ENXIO) { // a socket
		return nil, notRegular
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, notRegular
	}
	return f, nil
}

// checkPaths refuses relative paths, and replaces them by the defaults: they would depend
// on the directory in which the runtime was started. It does not check logFile: no pod
// is refused because of the log.
func (s *Settings) checkPaths() error {
	var errs []error
	for _, p := range []struct {
		key      string
		path     *string
		fallback string
	}{
		{"confDir", &s.ConfDir, defaultConfDir}, {"kubeconfig", &s.Kubeconfig, ""}, {"dataDir", &s.DataDir, DefaultDataDir},
	} {
		if *p.path != "" && !filepath.IsAbs(*p.path) {
			errs = append(errs, fmt.Errorf("ipam.%s: %q is not an absolute path", p.key, *p.path))
			*p.path = p.fallback
		}
	}
	return errors.Join(errs...)
}

// checkTimes refuses what is no time, and replaces it by the default.
func (s *Settings) checkTimes() error {
	return errors.Join(
		checkTime("lossGrace", "a time, such as 3m", &s.LossGrace, func(d time.Duration) bool { return d > 0 }),
		checkTime("releaseCooldown", "a time from 0s to 24h in whole seconds, such as 90s", &s.ReleaseCooldown, func(d time.Duration) bool {
			return d >= 0 && d <= v1alpha1.MaxCooldown && d%time.Second == 0
		}))
}

// checkTime empties a setting that is not what is wanted, and says so.
func checkTime(name, want string, setting *string, fits func(time.Duration) bool) error {
	d, err := time.ParseDuration(*setting)
	if *setting == "" || err == nil && fits(d) {
		return nil
	}
	err = fmt.Errorf("ipam.%s: %q is not %s", name, *setting, want)
	*setting = ""
	return err
}

// timeOf returns what a setting says that was checked, or 0 if it is empty.
func timeOf(setting string) time.Duration {
	d, _ := time.ParseDuration(setting)
	return d
}

// fillFrom sets the empty settings.
func (s *Settings) fillFrom(other Settings) {
	s.PoolName = first(s.PoolName, other.PoolName)
	s.PoolType = first(s.PoolType, other.PoolType)
	s.ForcePoolName = cmp.Or(s.ForcePoolName, other.ForcePoolName)
	s.LogFile = first(s.LogFile, other.LogFile)
	s.LogLevel = first(s.LogLevel, other.LogLevel)
	s.Kubeconfig = first(s.Kubeconfig, other.Kubeconfig)
	s.PoolsNamespace = first(s.PoolsNamespace, other.PoolsNamespace)
	s.NodeName = first(s.NodeName, other.NodeName)
	s.DataDir = first(s.DataDir, other.DataDir)
	s.LossGrace = first(s.LossGrace, other.LossGrace)
	s.ReleaseCooldown = first(s.ReleaseCooldown, other.ReleaseCooldown)
	s.AllowPersistentIPs = cmp.Or(s.AllowPersistentIPs, other.AllowPersistentIPs)
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// request returns the claim.Request of an ADD.
func (n *network) request(args *skel.CmdArgs) (claim.Request, error) {
	if len(args.Args) > maxArgs {
		return claim.Request{}, fmt.Errorf("CNI_ARGS has %d bytes, more than %d", len(args.Args), maxArgs)
	}
	if len(args.ContainerID) > maxContainerID {
		return claim.Request{}, fmt.Errorf("CNI_CONTAINERID has %d characters, more than %d", len(args.ContainerID), maxContainerID)
	}
	var env environment
	if err := types.LoadArgs(args.Args, &env); err != nil {
		return claim.Request{}, fmt.Errorf("CNI_ARGS: %w", err)
	}
	for _, arg := range []struct {
		name  string
		value types.UnmarshallableString
	}{{"K8S_POD_NAME", env.K8S_POD_NAME}, {"K8S_POD_NAMESPACE", env.K8S_POD_NAMESPACE}} {
		if arg.value == "" {
			return claim.Request{}, fmt.Errorf("CNI_ARGS: %s is not provided by container runtime", arg.name)
		}
	}
	if err := n.checkTexts(args, &env); err != nil {
		return claim.Request{}, err
	}
	pools, err := n.pools()
	if err != nil {
		return claim.Request{}, err
	}
	want, err := n.want(string(env.IP))
	if err != nil {
		return claim.Request{}, err
	}
	onePerFamily, _ := version.GreaterThanOrEqualTo("0.2.0", n.CNIVersion)
	return claim.Request{
		Attachment:   attachment(args),
		Pools:        pools,
		Want:         want,
		OnePerFamily: onePerFamily,
		Network:      n.Name,
		Pod: v1alpha1.PodReference{
			Namespace: string(env.K8S_POD_NAMESPACE),
			Name:      string(env.K8S_POD_NAME),
			UID:       k8stypes.UID(env.K8S_POD_UID),
		},
		DeviceID:   n.deviceID(),
		Persistent: n.persistent(),
	}, nil
}

func (n *network) deviceID() string { return first(n.DeviceID, n.Runtime.DeviceID) }

// maxText is how long names of networks and devices are in an IPAllocation, in bytes, and
// maxUID a pod's UID.
const (
	maxText = 253
	maxUID  = 64
)

// checkTexts refuses what an IPAllocation cannot have: its CRD would refuse it at each try.
func (n *network) checkTexts(args *skel.CmdArgs, env *environment) error {
	printable := func(r rune) bool { return '!' <= r && r <= '~' }
	visible := func(r rune) bool { return r != utf8.RuneError && !unicode.IsControl(r) && !unicode.Is(unicode.Z, r) }
	inUID := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_.", r)
	}
	for _, text := range []struct {
		name, value string
		length      int
		allowed     func(rune) bool
	}{
		{"name", n.Name, maxText, printable}, {"deviceID", n.deviceID(), maxText, printable},
		{"CNI_IFNAME", args.IfName, maxText, visible}, {"CNI_ARGS: K8S_POD_UID", string(env.K8S_POD_UID), maxUID, inUID},
	} {
		if len(text.value) > text.length {
			return fmt.Errorf("%s has %d characters, more than %d", text.name, len(text.value), text.length)
		}
		if i := strings.IndexFunc(text.value, func(r rune) bool { return !text.allowed(r) }); i >= 0 {
			return fmt.Errorf("%s: %q has characters that are not allowed there", text.name, text.value)
		}
	}
	for _, refused := range []struct {
		name, value string
		why         []string
	}{
		{"K8S_POD_NAMESPACE", string(env.K8S_POD_NAMESPACE), validation.IsDNS1123Label(string(env.K8S_POD_NAMESPACE))},
		{"K8S_POD_NAME", string(env.K8S_POD_NAME), validation.IsDNS1123Subdomain(string(env.K8S_POD_NAME))},
	} {
		if len(refused.why) > 0 {
			return fmt.Errorf("CNI_ARGS: %s: %q: %s", refused.name, refused.value, refused.why[0])
		}
	}
	return nil
}

func (n *network) persistent() bool {
	return isTrue(cmp.Or(n.AllowPersistentIPs, n.IPAM.AllowPersistentIPs))
}

func isTrue(setting *bool) bool { return setting != nil && *setting }

func attachment(args *skel.CmdArgs) hint.Attachment {
	return hint.Attachment{ContainerID: args.ContainerID, Interface: args.IfName}
}

// pools returns the pools that the configuration names.
func (n *network) pools() ([]v1alpha1.PoolReference, error) {
	if err := n.checkSection(); err != nil {
		return nil, err
	}
	kind, err := pool.ParseType(first(n.Args.CNI.PoolType, n.IPAM.PoolType))
	if err != nil {
		return nil, err
	}
	names := n.Args.CNI.PoolNames
	if len(names) == 0 && n.IPAM.PoolName != "" {
		names = strings.Split(n.IPAM.PoolName, ",")
	}
	check := checkName
	if len(names) == 0 {
		if isTrue(n.IPAM.ForcePoolName) {
			return nil, errors.New("ipam.poolName is required because forcePoolName is set")
		}
		names, check = []string{n.Name}, pool.ValidName
	}
	if len(names) > maxPools {
		return nil, errors.New("pool field can't contain more then two entries") // nv-ipam's words, with its typo
	}
	var pools []v1alpha1.PoolReference
	for _, name := range names {
		ref := v1alpha1.PoolReference{Kind: kind, Name: strings.TrimSpace(name)}
		if err := check(ref.Name); err != nil {
			return nil, fmt.Errorf("poolName: %w", err)
		}
		if len(ref.Name) > v1alpha1.MaxPoolName && !pool.HasLabels(ref.Name) {
			return nil, fmt.Errorf("poolName: %q has %d characters: with more than %d there is no room for an address in an allocation's name; give the pool a shorter one", ref.Name, len(ref.Name), v1alpha1.MaxPoolName)
		}
		if slices.Contains(pools, ref) {
			return nil, fmt.Errorf("poolName: pool %q is named twice", ref.Name)
		}
		pools = append(pools, ref)
	}
	return pools, nil
}

// checkName checks a pool's name, which may have labels of the node.
func checkName(name string) error {
	if pool.HasLabels(name) {
		return pool.CheckLabels(name)
	}
	return pool.ValidName(name)
}

// checkSection refuses a configuration without "ipam", as nv-ipam does: somebody has named this
// plugin as a network's main plugin.
func (n *network) checkSection() error {
	if n.IPAM.Type != "" || n.IPAM.PoolName != "" {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(n.stdin, &keys); err == nil && keys["ipam"] == nil {
		return errors.New(`network configuration has no "ipam" section: this is an IPAM plugin, which another plugin calls`)
	}
	return nil
}

// whichPool explains where a pool's name comes from if the configuration names no pool.
func (n *network) whichPool() string {
	if len(n.Args.CNI.PoolNames) > 0 || n.IPAM.PoolName != "" {
		return ""
	}
	why := "; ipam.poolName is not set, so the network's name is the pool's"
	var raw struct {
		IPAM map[string]json.RawMessage `json:"ipam"`
	}
	_ = json.Unmarshal(n.stdin, &raw) // parseNetwork has succeeded
	for _, key := range slices.Sorted(maps.Keys(raw.IPAM)) {
		known := slices.ContainsFunc([]string{"poolName", "poolType", "forcePoolName", "poolsNamespace"}, func(k string) bool { return strings.EqualFold(k, key) })
		if strings.Contains(strings.ToLower(key), "pool") && !known {
			why += fmt.Sprintf(" (ipam has the unknown key %q: did you mean poolName?)", key)
		}
	}
	return why
}

// want returns which addresses are requested: by the runtime, else by args.cni, else by
// CNI_ARGS.
func (n *network) want(envIP string) (pool.Want, error) {
	cni := n.Args.CNI
	addresses, err := parseAddrs(n.Runtime.IPs, "static IP request contains invalid IP address")
	if err == nil && len(addresses) == 0 {
		addresses, err = parseAddrs(cni.IPs, "static IP request contains invalid IP address")
	}
	if err == nil && len(addresses) == 0 && envIP != "" {
		addresses, err = parseAddrs(strings.Split(envIP, ","), "CNI_ARGS: IP argument contains invalid IP address")
	}
	switch {
	case err != nil:
		return pool.Want{}, err
	case cni.AllocateIPWithIndex != nil && *cni.AllocateIPWithIndex < 0:
		return pool.Want{}, errors.New("allocateIPWithIndex can't be negative")
	case cni.AllocateDefaultGateway && cni.AllocateIPWithIndex != nil:
		return pool.Want{}, errors.New("allocateDefaultGateway can't be used together with allocateIPWithIndex")
	case cni.AllocateDefaultGateway && len(addresses) > 0:
		return pool.Want{}, errors.New("allocateDefaultGateway can't be used together with static IP allocation")
	case cni.AllocateIPWithIndex != nil && len(addresses) > 0:
		return pool.Want{}, errors.New("allocateIPWithIndex can't be used together with static IP allocation")
	}
	return pool.Want{Addresses: addresses, DefaultGateway: cni.AllocateDefaultGateway, Index: cni.AllocateIPWithIndex}, nil
}

// parseAddrs parses requested addresses. It ignores a prefix length.
func parseAddrs(texts []string, complaint string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range texts {
		addr, _, _ := strings.Cut(strings.TrimSpace(text), "/")
		a, err := pool.ParseAddr(addr)
		if err != nil {
			return nil, fmt.Errorf("%s: %q", complaint, text)
		}
		out = append(out, a)
	}
	return out, nil
}
