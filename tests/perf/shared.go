// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"

	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
)

const (
	sharedPoolName = "no-blocks"
	sharedSubnet   = "10.60.0.0/17"
	sharedSize     = 1<<15 - 2
	// counted is how many ADDs have their requests counted.
	counted = 30 * hostCount
	// filler is the node that holds what the pool is filled with.
	filler = "filler"
)

// shared makes many ADDs at once in a pool without blocks, ever fuller, and beside it in
// blocks.
func (b *bench) shared() error {
	spec := v1alpha1.IPPoolSpec{Subnet: sharedSubnet}
	if err := b.pool(sharedPoolName, spec, nil); err != nil {
		return err
	}
	if err := b.pool("blocks-beside", blocksOf("10.61.0.0/16", 2000), hostNames(hostCount)); err != nil {
		return err
	}
	t := b.table("Pools without blocks", fmt.Sprintf("ADDs of ten nodes in one pool of %d addresses, of which so many are held by another node, at random; with so many processes at a time, %d ADDs for each line, but no more than a third of what is free. "+
		"No node knows anything before. Beside them blocks, empty. Each line is run once. The targets for requests and creates have no line here: they are counted in the bench's own process, by the plugin's own code with an administrator's certificate, in up to %d ADDs of the ten nodes, one after the other, "+
		"since the API server does not say which requests belong together.", sharedSize, b.at, counted),
		"at once", "ADDs/s", "p50 ms", "p99 ms", "requests per ADD", "creates per ADD")
	if err := b.clear(); err != nil {
		return err
	}
	exemplar, err := b.exemplar()
	if err != nil {
		return err
	}
	filled, perSecond := 0, map[string]float64{}
	for _, fill := range []int{-1, 0, 50, 90, 99} {
		name, pool := fmt.Sprintf("no blocks, %d %% full", fill), sharedPoolName
		if fill < 0 {
			name, pool = "blocks", "blocks-beside"
		}
		if n := max(fill, 0) * sharedSize / 100; n > filled {
			if err := b.fillUp(exemplar, filled, n); err != nil {
				return err
			}
			filled = n
		}
		adds := min(b.at, (sharedSize-filled)/3) // else the fullest pool would be another one at the end
		for _, c := range []int{1, 10, 30, 100} {
			rate, err := b.sharedLine(t, name, pool, c, adds)
			if err != nil {
				return fmt.Errorf("%s, %d at once: %w", name, c, err)
			}
			perSecond[fmt.Sprint(fill, c)] = rate
		}
		if fill < 0 {
			continue
		}
		requests, creates, err := b.countShared(min(counted, (sharedSize-filled)/3)) // the first of each node is dear
		if err != nil {
			return err
		}
		b.say("%s: 90 %% of ADDs make at most %d requests, %.2f creates each", name, requests, creates)
		if fill <= 90 {
			b.target(fmt.Sprintf("ADD without its process, one at a time, requests (p90): no blocks, %d %% full", fill), float64(requests), 3, "")
			b.target(fmt.Sprintf("ADD without its process, one at a time, creates: no blocks, %d %% full", fill), creates, 1.3, "")
			b.targetAtLeast(fmt.Sprintf("ADDs/s at 100 at once to those at 30, one run of each: %s", name), perSecond[fmt.Sprint(fill, 100)]/perSecond[fmt.Sprint(fill, 30)], 0.9, " ×")
		}
	}
	return nil
}

// sharedLine measures ADDs of all hosts, and takes them back.
func (b *bench) sharedLine(t *table, name, pool string, c, adds int) (perSecond float64, err error) {
	hosts, err := b.oneEach("shared", pool)
	if err != nil {
		return 0, err
	}
	containers := b.attached(adds)
	sum, err := b.costOf(c, adds, func(i int) (sample, error) { return hosts[i%hostCount].call("ADD", containers[i], "") })
	if err != nil {
		return 0, err
	}
	perSecond = sum.perSecond()
	t.add(name, float64(c), perSecond, sum.walls.p50(), sum.walls.p99(), sum.perCall(sum.sum("", "")), sum.perCall(sum.sum("POST", "ipallocations")))
	b.say("%s, %d at once: %.0f/s", name, c, perSecond)
	return perSecond, errors.Join(b.holds(containers, pool), b.empty())
}

// fillUp has n random addresses of the shared pool held, of which some already are. It adds
// to them, and never removes any: that would be one event of many megabytes for the API server.
func (b *bench) fillUp(exemplar []byte, from, n int) error {
	first := netip.MustParsePrefix(sharedSubnet).Addr().As4()
	order := rand.New(rand.NewSource(1)).Perm(sharedSize)
	if err := b.store(n-from, func(i int) (kv, error) {
		at := order[from+i] + 1
		return fillerAt(exemplar, netip.AddrFrom4([4]byte{first[0], first[1], byte(at >> 8), byte(at)}))
	}); err != nil {
		return err
	}
	return b.rarely("the API server has seen the allocations", func() (bool, error) { // in its memory, where a window is listed
		list, err := b.metadata.Resource(allocationsResource).Namespace(namespace).List(b.ctx, metav1.ListOptions{ResourceVersion: "0"})
		return err == nil && len(list.Items) == n, err
	})
}

// exemplar returns an allocation of the shared pool as etcd has it.
func (b *bench) exemplar() ([]byte, error) {
	obj := canary(hostName(0))
	obj.Name, obj.Spec.Address, obj.Spec.PoolRef.Name = sharedPoolName+".10.60.0.1", "10.60.0.1", sharedPoolName
	if _, err := b.ipam.IPAllocations(namespace).Create(b.ctx, obj, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	data, err := b.stored(allocationKey(namespace, obj.Name))
	if err != nil {
		return nil, err
	}
	return data, b.ipam.IPAllocations(namespace).Delete(b.ctx, obj.Name, metav1.DeleteOptions{})
}

func fillerAt(original []byte, addr netip.Addr) (kv, error) {
	var obj map[string]any
	if err := json.Unmarshal(original, &obj); err != nil {
		return kv{}, err
	}
	name := v1alpha1.AllocationName(sharedPoolName, addr)
	meta, spec := obj["metadata"].(map[string]any), obj["spec"].(map[string]any)
	meta["name"], meta["uid"] = name, "22222222-2a5c-4f0e-8a53-"+fmt.Sprintf("%012x", addr.As4())
	meta["labels"] = map[string]string{v1alpha1.LabelPool: sharedPoolName, v1alpha1.LabelNode: filler,
		v1alpha1.LabelContainer: v1alpha1.ContainerLabel(name), v1alpha1.LabelWindow: v1alpha1.WindowLabel(addr)}
	spec["address"], spec["nodeName"], spec["containerID"] = addr.String(), filler, v1alpha1.ContainerLabel(name)
	value, err := json.Marshal(obj)
	return kv{Key: []byte(allocationKey(namespace, name)), Value: value}, err
}

// empty takes back what the hosts hold, on the server and on their disks.
func (b *bench) empty() error {
	err := b.ipam.IPAllocations(namespace).DeleteCollection(b.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: v1alpha1.LabelNode + "!=" + filler})
	if err != nil {
		return err
	}
	disks, err := filepath.Glob(filepath.Join(b.env.Dir, "hosts", "*", "data"))
	for _, dir := range disks {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return err
}

// countShared makes so many ADDs of all hosts in this process, one after the other, since the API
// server does not say which requests belong together. It returns how many requests an ADD
// makes, 90th percentile, and how many creates on average.
func (b *bench) countShared(adds int) (p90 int, creates float64, err error) {
	var requests, posts atomic.Int64
	var claimers []*claim.Claimer
	for i := range hostCount {
		config := rest.CopyConfig(b.env.Config)
		config.QPS = -1
		config.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				requests.Add(1)
				if req.Method == http.MethodPost {
					posts.Add(1)
				}
				return next.RoundTrip(req)
			})
		})
		client, err := clientv1alpha1.NewForConfig(config)
		if err != nil {
			return 0, 0, err
		}
		log := slog.New(slog.DiscardHandler)
		dir := filepath.Join(b.env.Dir, "hosts", "counted-"+hostName(i), "data")
		claimers = append(claimers, &claim.Claimer{
			Ledger: ledger.Ledger{Client: client, Namespace: namespace, Node: hostName(i)},
			Hint:   hint.Open(dir, "bench", namespace, log), Log: log,
		})
	}
	var all []int
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	containers := b.attached(adds)
	for i, container := range containers {
		before := requests.Load()
		_, err := claimers[i%hostCount].Allocate(ctx, claim.Request{
			Attachment: hint.Attachment{ContainerID: container, Interface: "net1"}, Network: "net",
			Pools: []v1alpha1.PoolReference{{Kind: v1alpha1.PoolKindIPPool, Name: sharedPoolName}},
			Pod:   v1alpha1.PodReference{Namespace: "default", Name: "pod"},
		})
		if err != nil {
			return 0, 0, err
		}
		all = append(all, int(requests.Load()-before))
	}
	if err := b.holds(containers, sharedPoolName); err != nil {
		return 0, 0, err
	}
	slices.Sort(all)
	return all[len(all)*9/10], float64(posts.Load()) / float64(len(all)), b.empty()
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
