// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// storeVersion is the only one that nv-ipam ever had.
const storeVersion = 1

// nodeStore is nv-ipam's store on a node.
type nodeStore struct {
	// Sum is the checksum of the file (SHA-256), to see whether it has changed.
	Sum string
	// Entries by pool and address.
	Entries []entry
	// Unreadable are entries that say nothing that could be claimed.
	Unreadable []string
	// Last is where round robin stopped in each pool.
	Last map[v1alpha1.PoolReference]netip.Addr
}

// entry is one address that nv-ipam gave to an attachment.
type entry struct {
	Pool    v1alpha1.PoolReference `json:"pool"`
	Address netip.Addr             `json:"address"`
	hint.Attachment
	Pod      v1alpha1.PodReference `json:"pod"`
	DeviceID string                `json:"deviceID,omitempty"`
	// Requested is true where the address lies outside of the block that the node
	// had, so that a caller must have asked for it. Inside, nobody knows.
	Requested bool `json:"requested,omitempty"`
	// Created is when nv-ipam gave it; zero where it does not say.
	Created time.Time `json:"created,omitzero"`
}

// key tells entries apart.
func (e entry) key() string {
	return strings.Join([]string{string(e.Pool.Kind), e.Pool.Name, e.Address.String(), e.ContainerID, e.Interface}, "/")
}

// The file, as nv-ipam writes it.
type (
	storeFile struct {
		Version int                  `json:"version"`
		Pools   map[string]storePool `json:"pools"`
	}
	storePool struct {
		Entries map[string]storeEntry `json:"entries"`
		Last    string                `json:"last_reserved_ip"`
	}
	storeEntry struct {
		ContainerID   string `json:"container_id"`
		InterfaceName string `json:"interface_name"`
		IPAddress     string `json:"ip_address"`
		Metadata      struct {
			CreateTime   time.Time `json:"create_time"`
			PodUUID      string    `json:"pod_uuid"`
			PodName      string    `json:"pod_name"`
			PodNamespace string    `json:"pod_namespace"`
			DeviceID     string    `json:"device_id"`
			// PoolConfig is JSON in a string.
			PoolConfig string `json:"pool_config_snapshot"`
		} `json:"metadata"`
	}
	poolConfig struct {
		StartIP string `json:"startIP"`
		EndIP   string `json:"endIP"`
	}
)

// readStore reads nv-ipam's store; the error is fs.ErrNotExist where there is
// none. nv-ipam replaces the file in one piece, so one that cannot be parsed is
// broken, and guessing at the addresses that it had would be no help.
func readStore(path string) (*nodeStore, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	s := &nodeStore{Sum: hex.EncodeToString(sum[:]), Last: map[v1alpha1.PoolReference]netip.Addr{}}
	if len(data) == 0 { // nv-ipam takes it for a new one
		return s, nil
	}
	var file storeFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("nv-ipam's store %s is not valid: %w", path, err)
	}
	if file.Version != storeVersion {
		return nil, fmt.Errorf("nv-ipam's store %s has version %d, expected %d", path, file.Version, storeVersion)
	}
	for key, p := range file.Pools {
		s.add(key, p)
	}
	slices.SortFunc(s.Entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Pool.Kind, b.Pool.Kind), cmp.Compare(a.Pool.Name, b.Pool.Name), a.Address.Compare(b.Address), cmp.Compare(a.key(), b.key()))
	})
	slices.Sort(s.Unreadable)
	return s, nil
}

func (s *nodeStore) add(key string, p storePool) {
	ref, badPool := poolOf(key)
	for id, raw := range p.Entries {
		e, err := parseEntry(ref, raw)
		if err = errors.Join(badPool, err); err != nil {
			s.Unreadable = append(s.Unreadable, fmt.Sprintf("pool %q, entry %q, address %q: %v", key, id, raw.IPAddress, err))
			continue
		}
		s.Entries = append(s.Entries, e)
	}
	if last, err := pool.ParseAddr(p.Last); err == nil && badPool == nil {
		s.Last[ref] = last
	}
}

// poolOf parses the key of a pool: TYPE/NAME, or the name alone for the default type.
func poolOf(key string) (v1alpha1.PoolReference, error) {
	ref := v1alpha1.PoolReference{Kind: pool.DefaultKind, Name: key}
	for _, kind := range pool.Kinds() {
		if name, ok := strings.CutPrefix(key, pool.Type(kind)+"/"); ok {
			ref = v1alpha1.PoolReference{Kind: kind, Name: name}
		}
	}
	if err := pool.ValidName(ref.Name); err != nil {
		return v1alpha1.PoolReference{}, err
	}
	return ref, nil
}

func parseEntry(ref v1alpha1.PoolReference, raw storeEntry) (entry, error) {
	addr, err := pool.ParseAddr(raw.IPAddress)
	switch {
	case err != nil:
		return entry{}, err
	case raw.ContainerID == "" || raw.InterfaceName == "":
		return entry{}, errors.New("names no container and interface")
	case strings.Contains(raw.ContainerID+raw.InterfaceName, "/"):
		return entry{}, errors.New("container and interface have no slash")
	}
	meta := raw.Metadata
	return entry{
		Pool:       ref,
		Address:    addr,
		Attachment: hint.Attachment{ContainerID: raw.ContainerID, Interface: raw.InterfaceName},
		Pod:        v1alpha1.PodReference{Namespace: meta.PodNamespace, Name: meta.PodName, UID: types.UID(meta.PodUUID)},
		DeviceID:   meta.DeviceID,
		Requested:  outside(addr, meta.PoolConfig),
		Created:    meta.CreateTime,
	}, nil
}

// outside reports whether an address is not in the block that a pool's
// configuration had when the address was given.
func outside(addr netip.Addr, config string) bool {
	var block poolConfig
	if json.Unmarshal([]byte(config), &block) != nil {
		return false
	}
	from, errFrom := pool.ParseAddr(block.StartIP)
	to, errTo := pool.ParseAddr(block.EndIP)
	return errFrom == nil && errTo == nil && (addr.Less(from) || to.Less(addr))
}
