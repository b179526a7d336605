// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Rewrite changes an allocation where it is stored, behind the API server's back, and
// keeps its UID: what no client may change, as when the ADD of its container began.
func (e *Env) Rewrite(t *testing.T, namespace, name string, change func(spec map[string]any)) {
	t.Helper()
	key := "/registry/" + v1alpha1.GroupName + "/ipallocations/" + namespace + "/" + name
	var object map[string]any
	if err := json.Unmarshal(e.value(t, key), &object); err != nil {
		t.Fatal(err)
	}
	change(object["spec"].(map[string]any))
	data, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	e.etcd(t, "put", keyValue{[]byte(key), data}, &struct{}{})
}

// Copy writes n copies of an allocation where it is stored, behind the API server's back:
// so many creates would take minutes. change makes the i-th differ; it has to change the
// name and the UID.
func (e *Env) Copy(t testing.TB, namespace, name string, n int, change func(i int, metadata, spec map[string]any)) {
	t.Helper()
	prefix := "/registry/" + v1alpha1.GroupName + "/ipallocations/" + namespace + "/"
	original := e.value(t, prefix+name)
	var puts []any
	for i := range n {
		var object map[string]any
		if err := json.Unmarshal(original, &object); err != nil {
			t.Fatal(err)
		}
		metadata := object["metadata"].(map[string]any)
		change(i, metadata, object["spec"].(map[string]any))
		data, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		puts = append(puts, put(prefix+metadata["name"].(string), data))
	}
	e.write(t, puts)
}

// keyValue is what etcd stores, with the names of its JSON.
type keyValue struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
}

// value is what etcd has under a key.
func (e *Env) value(t testing.TB, key string) []byte {
	t.Helper()
	found := e.read(t, map[string]any{"key": []byte(key)})
	if len(found) != 1 {
		t.Fatalf("%d objects in etcd under %s", len(found), key)
	}
	return found[0].Value
}

// read asks etcd for a range of keys.
func (e *Env) read(t testing.TB, keys map[string]any) []keyValue {
	t.Helper()
	var found struct {
		Kvs []keyValue `json:"kvs"`
	}
	e.etcd(t, "range", keys, &found)
	return found.Kvs
}

func put(key string, value []byte) any {
	return map[string]any{"requestPut": keyValue{[]byte(key), value}}
}

// write carries out operations, in as few transactions as etcd takes them.
func (e *Env) write(t testing.TB, ops []any) {
	t.Helper()
	const most = 128 // in one transaction
	for some := range slices.Chunk(ops, most) {
		e.etcd(t, "txn", map[string]any{"success": some}, &struct{}{})
	}
}

// etcd asks etcd by its JSON gateway.
func (e *Env) etcd(t testing.TB, verb string, request, answer any) {
	t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	url := e.EtcdURL() + "/v3/kv/" + verb
	resp, err := http.Post(url, "application/json", bytes.NewReader(body)) //nolint:noctx // of a test, on loopback
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(resp.Body)
		t.Fatalf("etcd: %s: %s", resp.Status, said)
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		t.Fatal(err)
	}
}

// Started is how an allocation's spec says when its ADD began.
const Started = "addStartedAt"
