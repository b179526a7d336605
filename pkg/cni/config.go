// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	k8stypes "k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Defaults of the configuration; all but the last two are nv-ipam's.
const (
	defaultConfDir  = "/etc/cni/net.d/nv-ipam.d"
	confFile        = "nv-ipam.conf"
	defaultLogFile  = "/var/log/nv-ipam-cni.log"
	defaultLogLevel = "info"
	defaultPoolType = v1alpha1.PoolKindIPPool
	// defaultNamespace is where nv-ipam looks for pools when it is not told.
	defaultNamespace = "kube-system"
	// defaultDataDir is nv-ipam's as well: its file there is called "store".
	defaultDataDir = "/var/lib/cni/nv-ipam"
)

// What is larger than these is a mistake, or worse: stdin and nv-ipam.conf in
// bytes, where a GC names some thousand attachments, and CNI_ARGS.
const (
	maxConfig = 512 << 10
	maxArgs   = 64 << 10
)

// What an IPAllocation can hold: see its type. The name of an object ends at 253
// characters, of which an IPv6 address takes 40.
const (
	maxContainerID = 256
	maxPoolName    = 213
)

// maxPools is how many pools one interface may take addresses from: one of each
// family.
const maxPools = 2

// Settings are the keys of the "ipam" section and of nv-ipam.conf. What the
// first leaves empty is taken from the second, then from the defaults. nv-ipam's
// daemonSocket and daemonCallTimeoutSeconds are accepted like any unknown key:
// there is no daemon.
type Settings struct {
	Type string `json:"type,omitempty"`
	// PoolName is one pool or two, separated by a comma. The network's name
	// where it is empty, unless ForcePoolName is set.
	PoolName      string `json:"poolName,omitempty"`
	PoolType      string `json:"poolType,omitempty"` // "ippool" or "cidrpool", in any case
	ForcePoolName *bool  `json:"forcePoolName,omitempty"`
	ConfDir       string `json:"confDir,omitempty"`
	LogFile       string `json:"logFile,omitempty"`
	LogLevel      string `json:"logLevel,omitempty"`
	// Kubeconfig is the file with the credentials to claim addresses with. Where
	// it is empty they are looked for: see findCredentials.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// PoolsNamespace is the namespace of the pools and their allocations.
	PoolsNamespace string `json:"poolsNamespace,omitempty"`
	// NodeName is the name of this node's Node object, for credentials that do not
	// name it; the hostname in lower case where it is empty.
	NodeName string `json:"nodeName,omitempty"`
	// DataDir is the directory for what this node keeps between calls.
	DataDir string `json:"dataDir,omitempty"`
}

// network is a network configuration as it comes on stdin.
type network struct {
	types.NetConf

	IPAM     Settings `json:"ipam"`
	DeviceID string   `json:"deviceID"`
	Runtime  struct {
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
	// ValidAttachments is nil where the runtime does not say which attachments
	// are valid, which is not the same as saying that none is.
	ValidAttachments *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
}

// environment is what CNI_ARGS may hold.
type environment struct {
	types.CommonArgs

	IP                types.UnmarshallableString
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
	// The container ID again, which CNI_CONTAINERID has.
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
}

// parseNetwork reads the network configuration and completes its settings.
func parseNetwork(stdin []byte) (*network, error) {
	if len(stdin) > maxConfig {
		return nil, fmt.Errorf("network configuration has %d bytes, more than %d", len(stdin), maxConfig)
	}
	n := &network{}
	if err := json.Unmarshal(stdin, n); err != nil {
		return nil, fmt.Errorf("network configuration is not valid: %w", err)
	}
	if n.CNIVersion == "" {
		n.CNIVersion = "0.1.0" // what the specification says an absent version means
	}
	s := &n.IPAM
	s.ConfDir = first(s.ConfDir, defaultConfDir)
	path := filepath.Join(s.ConfDir, confFile)
	data, err := readConfig(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", path, err)
	default:
		var file Settings
		if err := json.Unmarshal(data, &file); err != nil {
			return nil, fmt.Errorf("%s is not valid: %w", path, err)
		}
		s.fillFrom(file)
	}
	s.fillFrom(Settings{
		LogFile: defaultLogFile, LogLevel: defaultLogLevel, PoolType: string(defaultPoolType),
		PoolsNamespace: defaultNamespace, DataDir: defaultDataDir,
	})
	return n, s.checkPaths()
}

// readConfig is os.ReadFile for a file that should be small.
func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
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

// checkPaths refuses relative paths: where they lead depends on the directory that
// the runtime happens to have started in.
func (s *Settings) checkPaths() error {
	for _, p := range []struct{ key, path string }{
		{"confDir", s.ConfDir}, {"kubeconfig", s.Kubeconfig}, {"dataDir", s.DataDir},
	} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			return fmt.Errorf("ipam.%s: %q is not an absolute path", p.key, p.path)
		}
	}
	return nil
}

// fillFrom sets what is empty.
func (s *Settings) fillFrom(other Settings) {
	s.PoolName = first(s.PoolName, other.PoolName)
	s.PoolType = first(s.PoolType, other.PoolType)
	if s.ForcePoolName == nil {
		s.ForcePoolName = other.ForcePoolName
	}
	s.LogFile = first(s.LogFile, other.LogFile)
	s.LogLevel = first(s.LogLevel, other.LogLevel)
	s.Kubeconfig = first(s.Kubeconfig, other.Kubeconfig)
	s.PoolsNamespace = first(s.PoolsNamespace, other.PoolsNamespace)
	s.NodeName = first(s.NodeName, other.NodeName)
	s.DataDir = first(s.DataDir, other.DataDir)
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// request turns what an ADD brings into a claim.Request.
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
	pools, err := n.pools()
	if err != nil {
		return claim.Request{}, err
	}
	want, err := n.want(string(env.IP))
	if err != nil {
		return claim.Request{}, err
	}
	return claim.Request{
		Attachment: attachment(args),
		Pools:      pools,
		Want:       want,
		Network:    n.Name,
		Pod: v1alpha1.PodReference{
			Namespace: string(env.K8S_POD_NAMESPACE),
			Name:      string(env.K8S_POD_NAME),
			UID:       k8stypes.UID(env.K8S_POD_UID),
		},
		DeviceID: first(n.DeviceID, n.Runtime.DeviceID),
	}, nil
}

func attachment(args *skel.CmdArgs) claim.Attachment {
	return claim.Attachment{ContainerID: args.ContainerID, Interface: args.IfName}
}

// pools returns the pools to take addresses from.
func (n *network) pools() ([]v1alpha1.PoolReference, error) {
	kind, err := poolKind(first(n.Args.CNI.PoolType, n.IPAM.PoolType))
	if err != nil {
		return nil, err
	}
	names := n.Args.CNI.PoolNames
	if len(names) == 0 && n.IPAM.PoolName != "" {
		names = strings.Split(n.IPAM.PoolName, ",")
	}
	if len(names) == 0 {
		if n.IPAM.ForcePoolName != nil && *n.IPAM.ForcePoolName {
			return nil, errors.New("ipam.poolName is required because forcePoolName is set")
		}
		names = []string{n.Name}
	}
	if len(names) > maxPools {
		return nil, errors.New("pool field can't contain more then two entries")
	}
	var pools []v1alpha1.PoolReference
	for _, name := range names {
		ref := v1alpha1.PoolReference{Kind: kind, Name: strings.TrimSpace(name)}
		if err := pool.ValidName(ref.Name); err != nil {
			return nil, fmt.Errorf("poolName: %w", err)
		}
		if len(ref.Name) > maxPoolName {
			return nil, fmt.Errorf("poolName: %q has %d characters: with more than %d there is no room for an address in an allocation's name; give the pool a shorter one", ref.Name, len(ref.Name), maxPoolName)
		}
		if slices.Contains(pools, ref) {
			return nil, fmt.Errorf("poolName: pool %q is named twice", ref.Name)
		}
		pools = append(pools, ref)
	}
	return pools, nil
}

func poolKind(text string) (v1alpha1.PoolKind, error) {
	for _, kind := range []v1alpha1.PoolKind{v1alpha1.PoolKindIPPool, v1alpha1.PoolKindCIDRPool} {
		if strings.EqualFold(text, string(kind)) {
			return kind, nil
		}
	}
	return "", fmt.Errorf("unsupported poolType %s, supported values: ippool, cidrpool", text)
}

// want returns what is asked for beyond any address at all. Requested addresses
// come from the runtime, else from args.cni, else from CNI_ARGS.
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

// parseAddrs parses requested addresses; a prefix length is cut off.
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
