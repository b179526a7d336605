// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// The store was written by nv-ipam for five pods on a node of three pools.
func TestReadStore(t *testing.T) {
	s, err := readStore("testdata/store.json")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range s.Entries {
		got = append(got, fmt.Sprintf("%s %s %s %.4s/%s %s/%s requested=%t", e.Pool.Kind, e.Pool.Name, e.Address, e.ContainerID, e.Interface, e.Pod.Namespace, e.Pod.Name, e.Requested))
	}
	want := []string{
		"CIDRPool rail1 10.60.1.2 523b/net1 ml/train-0 requested=false",
		"IPPool pool1 192.168.0.5 7750/net1 default/static-ip-pod1 requested=true",
		"IPPool pool1 192.168.0.101 1128/net1 default/web-0 requested=false",
		"IPPool pool1 192.168.0.102 b796/net1 default/web-1 requested=false",
		"IPPool pool1 192.168.0.103 410f/net1 ml/train-0 requested=false",
		"IPPool pool6 fd52:2eb5:44::1f5 410f/net1 ml/train-0 requested=false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("entries\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	web0 := s.Entries[2]
	if web0.Pod.UID != "4055bce4-d967-401e-9c38-30791eac9157" || !web0.Created.Equal(time.Date(2026, 11, 23, 7, 40, 10, 801114213, time.UTC)) {
		t.Errorf("web-0: UID %s, created %v", web0.Pod.UID, web0.Created)
	}
	last := map[string]string{}
	for ref, addr := range s.Last {
		last[string(ref.Kind)+"/"+ref.Name] = addr.String()
	}
	if got := fmt.Sprint(last); got != "map[CIDRPool/rail1:10.60.1.2 IPPool/pool1:192.168.0.103 IPPool/pool6:fd52:2eb5:44::1f5]" {
		t.Errorf("last: %s", got)
	}
	if len(s.Unreadable) > 0 {
		t.Errorf("unreadable: %q", s.Unreadable)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadStoreKeepsWhatCanBeRead(t *testing.T) {
	const good = `{"container_id":"c","interface_name":"net1","ip_address":"10.0.0.2"}`
	for name, tc := range map[string]struct {
		pools               string
		entries, unreadable int
	}{
		"an address that is none":          {`"p":{"entries":{"a":{"container_id":"c","interface_name":"i","ip_address":"10.0.0"},"b":` + good + `}}`, 1, 1},
		"no container":                     {`"p":{"entries":{"a":{"interface_name":"i","ip_address":"10.0.0.1"}}}`, 0, 1},
		"a container that is a path":       {`"p":{"entries":{"a":{"container_id":"../c","interface_name":"i","ip_address":"10.0.0.1"}}}`, 0, 1},
		"a key that is no pool":            {`"other/p":{"entries":{"a":` + good + `,"b":` + good + `}}`, 0, 2},
		"no entries":                       {`"p":{"entries":null}`, 0, 0},
		"no pod, as of an older nv-ipam":   {`"p":{"entries":{"a":` + good + `}}`, 1, 0},
		"a round robin that is no address": {`"p":{"entries":{"a":` + good + `},"last_reserved_ip":"x"}`, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := readStore(write(t, `{"version":1,"checksum":1,"pools":{`+tc.pools+`}}`))
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Entries) != tc.entries || len(s.Unreadable) != tc.unreadable || len(s.Last) > 0 {
				t.Errorf("%d entries, unreadable %q, last %v", len(s.Entries), s.Unreadable, s.Last)
			}
		})
	}
}

func TestReadStoreRefuses(t *testing.T) {
	for name, text := range map[string]string{"half a file": `{"version":1,"pools":{"p":{`, "another version": `{"version":2,"pools":{}}`} {
		if s, err := readStore(write(t, text)); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if _, err := readStore(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no store: %v", err)
	}
	if s, err := readStore(write(t, "")); err != nil || len(s.Entries) > 0 {
		t.Errorf("empty store: %v, %v", s, err)
	}
}

func TestJournal(t *testing.T) {
	store := write(t, "")
	if j, err := readJournal(store); j != nil || err != nil {
		t.Errorf("no journal: %v, %v", j, err)
	}
	s, err := readStore("testdata/store.json")
	if err != nil {
		t.Fatal(err)
	}
	j := &nodeJournal{Node: "n"}
	for _, e := range s.Entries {
		j.set(entryOutcome{entry: e, Result: claimed})
	}
	j.set(entryOutcome{entry: s.Entries[0], Result: already})
	j.set(entryOutcome{entry: s.Entries[1], Result: conflict, Detail: "held by another"})
	if err := j.save(store); err != nil {
		t.Fatal(err)
	}
	back, err := readJournal(store)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := back.String(), "6 entries: 4 claimed, 1 already claimed, 1 conflicts, 0 obsolete, 0 released since, 0 refused, 0 unreadable"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if c := back.unsolved(); len(c) != 1 || c[0].Address != s.Entries[1].Address || c[0].Pool != (v1alpha1.PoolReference{Kind: "IPPool", Name: "pool1"}) {
		t.Errorf("conflicts %+v", c)
	}
	if news := s.news(back); len(news) > 0 {
		t.Errorf("a journal that has been written and read knows its entries; new are %v", news)
	}
	// A journal that cannot be read is as good as none: everything is tried again.
	if err := os.WriteFile(store+journalSuffix, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if j, err := readJournal(store); j != nil || err != nil {
		t.Errorf("half a journal: %v, %v", j, err)
	}
}
