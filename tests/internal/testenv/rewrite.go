// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Rewrite changes an allocation where it is stored, behind the API server's back, and
// keeps its UID: what no client may change, as when the ADD of its container began.
func (e *Env) Rewrite(t *testing.T, namespace, name string, change func(spec map[string]any)) {
	t.Helper()
	key := "/registry/" + v1alpha1.GroupName + "/ipallocations/" + namespace + "/" + name
	var found struct {
		Kvs []struct {
			Value []byte `json:"value"`
		} `json:"kvs"`
	}
	e.etcd(t, "range", map[string]string{"key": base64.StdEncoding.EncodeToString([]byte(key))}, &found)
	if len(found.Kvs) != 1 {
		t.Fatalf("%d objects in etcd under %s", len(found.Kvs), key)
	}
	var object map[string]any
	if err := json.Unmarshal(found.Kvs[0].Value, &object); err != nil {
		t.Fatal(err)
	}
	change(object["spec"].(map[string]any))
	data, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	e.etcd(t, "put", map[string]string{
		"key": base64.StdEncoding.EncodeToString([]byte(key)), "value": base64.StdEncoding.EncodeToString(data),
	}, &struct{}{})
}

// Copy writes n copies of an allocation where it is stored, behind the API server's back:
// so many creates would take minutes. change makes the i-th differ; it has to change the
// name and the UID.
func (e *Env) Copy(t testing.TB, namespace, name string, n int, change func(i int, metadata, spec map[string]any)) {
	t.Helper()
	prefix := "/registry/" + v1alpha1.GroupName + "/ipallocations/" + namespace + "/"
	var found struct {
		Kvs []struct {
			Value []byte `json:"value"`
		} `json:"kvs"`
	}
	e.etcd(t, "range", map[string]string{"key": base64.StdEncoding.EncodeToString([]byte(prefix + name))}, &found)
	if len(found.Kvs) != 1 {
		t.Fatalf("%d objects in etcd of name %s", len(found.Kvs), name)
	}
	const most = 128 // that etcd takes in one transaction
	var puts []any
	for i := range n {
		var object map[string]any
		if err := json.Unmarshal(found.Kvs[0].Value, &object); err != nil {
			t.Fatal(err)
		}
		metadata := object["metadata"].(map[string]any)
		change(i, metadata, object["spec"].(map[string]any))
		data, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		puts = append(puts, map[string]any{"requestPut": map[string]any{"key": []byte(prefix + metadata["name"].(string)), "value": data}})
		if len(puts) == most || i == n-1 {
			e.etcd(t, "txn", map[string]any{"success": puts}, &struct{}{})
			puts = nil
		}
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
