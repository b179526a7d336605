// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// nvipam stands in for nv-ipam on a node, for the tests of the migration: a CNI plugin
// that gives addresses from nv-ipam's node store and enters them there, as nv-ipam's
// daemon does. It knows IPPools, by the snapshot of their configuration in the store.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

const storePath = "/var/lib/cni/nv-ipam/store"

type (
	store struct {
		Version  int              `json:"version"`
		Checksum uint32           `json:"checksum"`
		Pools    map[string]*pool `json:"pools"`
	}
	pool struct {
		Name    string           `json:"name"`
		Entries map[string]entry `json:"entries"`
		// Config is poolConfig as JSON.
		Config string `json:"last_pool_config"`
		Last   string `json:"last_reserved_ip"`
	}
	poolConfig struct {
		Subnet, StartIP, EndIP, Gateway string
	}
	entry struct {
		ContainerID string   `json:"container_id"`
		Interface   string   `json:"interface_name"`
		Address     string   `json:"ip_address"`
		Metadata    metadata `json:"metadata"`
	}
	metadata struct {
		Created      time.Time `json:"create_time"`
		PodUID       string    `json:"pod_uuid"`
		PodName      string    `json:"pod_name"`
		PodNamespace string    `json:"pod_namespace"`
		DeviceID     string    `json:"device_id"`
		Config       string    `json:"pool_config_snapshot"`
	}
)

func main() {
	if err := call(os.Getenv("CNI_COMMAND")); err != nil {
		fmt.Printf(`{"code": 999, "msg": %q}`, err.Error())
		os.Exit(1)
	}
}

func call(command string) error {
	var conf struct {
		CNIVersion string `json:"cniVersion"`
		IPAM       struct {
			PoolName string `json:"poolName"`
		} `json:"ipam"`
	}
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(input, &conf); err != nil {
		return err
	}
	switch command {
	case "ADD":
		return change(func(s *store) error { return s.add(conf.IPAM.PoolName, conf.CNIVersion) })
	case "DEL":
		return change(func(s *store) error {
			if p := s.Pools[conf.IPAM.PoolName]; p != nil {
				delete(p.Entries, key())
			}
			return nil
		})
	}
	return fmt.Errorf("the stand-in of nv-ipam does not know %s", command)
}

// change changes the store, one call at a time.
func change(f func(*store) error) (err error) {
	lock, err := os.OpenFile(storePath+".standin-lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	var s store
	data, err := os.ReadFile(storePath)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	if err := f(&s); err != nil {
		return err
	}
	if data, err = json.Marshal(s); err != nil {
		return err
	}
	if err := os.WriteFile(storePath+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(storePath+".new", storePath)
}

// key is that of a container's interface among the entries of a pool.
func key() string { return os.Getenv("CNI_CONTAINERID") + "_" + os.Getenv("CNI_IFNAME") }

// add enters an address, and prints the result.
func (s *store) add(name, cniVersion string) error {
	p := s.Pools[name]
	if p == nil {
		return fmt.Errorf("configuration for pool %q, poolType \"ippool\" not found", name)
	}
	var config poolConfig
	if err := json.Unmarshal([]byte(p.Config), &config); err != nil {
		return err
	}
	args := map[string]string{}
	for _, arg := range strings.Split(os.Getenv("CNI_ARGS"), ";") {
		k, v, _ := strings.Cut(arg, "=")
		args[k] = v
	}
	address, _, _ := strings.Cut(args["IP"], "/")
	if address == "" {
		next, err := p.next(config)
		if err != nil {
			return err
		}
		address, p.Last = next, next
	}
	p.Entries[key()] = entry{os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_IFNAME"), address, metadata{
		Created: time.Now().UTC(), PodUID: args["K8S_POD_UID"], PodName: args["K8S_POD_NAME"], PodNamespace: args["K8S_POD_NAMESPACE"], Config: p.Config,
	}}
	_, bits, _ := strings.Cut(config.Subnet, "/")
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"cniVersion": cniVersion, "ips": []any{map[string]string{"address": address + "/" + bits, "gateway": config.Gateway}},
	})
}

// next is the first free address of the node's block after the last one given.
func (p *pool) next(config poolConfig) (string, error) {
	taken := map[string]bool{config.Gateway: true}
	for _, e := range p.Entries {
		taken[e.Address] = true
	}
	first, err := netip.ParseAddr(config.StartIP)
	if err != nil {
		return "", err
	}
	last, err := netip.ParseAddr(config.EndIP)
	if err != nil {
		return "", err
	}
	at, err := netip.ParseAddr(p.Last)
	if err != nil {
		at = last
	}
	for range 1 << 16 {
		if at = at.Next(); last.Less(at) {
			at = first
		}
		if !taken[at.String()] {
			return at.String(), nil
		}
	}
	return "", fmt.Errorf("no free addresses in the pool %q, poolType \"ippool\"", p.Name)
}
