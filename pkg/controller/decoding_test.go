// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	restwatch "k8s.io/client-go/rest/watch"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
)

// What a watch sends is read as the generated client reads it, whatever it looks like.
func TestDecoding(t *testing.T) {
	allocation, err := json.Marshal(&v1alpha1.IPAllocation{
		TypeMeta: metav1.TypeMeta{APIVersion: groupVersion.String(), Kind: "IPAllocation"},
		ObjectMeta: metav1.ObjectMeta{
			Name: "net--10.0.0.1", Annotations: map[string]string{"a": `"},"object":{"}}`},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{}}`)}},
		},
		Spec: v1alpha1.IPAllocationSpec{Address: "10.0.0.1", NodeName: "n", ContainerID: "c\u00e9\n", InterfaceName: "net1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	// An API server writes apiVersion and kind first, for it sorts by name.
	object := string(objectPrefix) + `IPAllocation",` + strings.TrimPrefix(string(allocation), `{"kind":"IPAllocation","apiVersion":"nv-ipam.nvidia.com/v1alpha1",`)
	if !json.Valid([]byte(object)) || len(object) != len(allocation) {
		t.Fatalf("not what an API server writes: %s", object)
	}
	event := func(kind, object string) string { return `{"type":"` + kind + `","object":` + object + `}` + "\n" }
	for name, sent := range map[string]string{
		"as an API server writes it":  event("ADDED", object) + event("MODIFIED", object) + event("DELETED", object),
		"the kind first":              event("ADDED", string(allocation)),
		"with spaces":                 `{ "type" : "ADDED", "object": ` + object + ` }`,
		"with spaces in the object":   event("ADDED", strings.Replace(object, `,"kind"`, `, "kind"`, 1)),
		"the object first":            `{"object":` + object + `,"type":"ADDED"}`,
		"escapes in the type":         event(`\u0041DDED`, object),
		"escapes in the kind":         event("ADDED", strings.Replace(object, `"IPA`, `"\u0049PA`, 1)),
		"bookmark":                    event("BOOKMARK", string(objectPrefix)+`IPPool","metadata":{"resourceVersion":"7"}}`),
		"error":                       event("ERROR", `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Expired","code":410}`),
		"unknown kind":                event("ADDED", string(objectPrefix)+`Other","metadata":{}}`),
		"unknown type":                event("OTHER", object),
		"no type":                     `{"object":` + object + `}`,
		"nothing but the kind":        event("ADDED", string(objectPrefix)+`IPPool"}`),
		"no object":                   event("ADDED", "null"),
		"no event":                    object,
		"another version":             event("ADDED", strings.Replace(object, "v1alpha1", "v1", 1)),
		"a field of another type":     event("ADDED", strings.Replace(object, `"nodeName":"n"`, `"nodeName":7`, 1)),
		"cut":                         event("ADDED", object)[:200],
		"cut in the second":           event("ADDED", object) + event("ADDED", object)[:200],
		"a brace less in the object":  event("ADDED", object[:len(object)-1]),
		"a brace more in the object":  event("ADDED", object+"}"),
		"a list, as a get has it":     string(objectPrefix) + `IPAllocationList","metadata":{},"items":[` + object + `]}`,
		"a number that is not finite": event("ADDED", strings.Replace(object, `"nodeName":"n"`, `"nodeName":1e999`, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			theirs, ours := watched(t, scheme.Codecs.WithoutConversion(), sent), watched(t, codecs{scheme.Codecs.WithoutConversion()}, sent)
			const named = "IPAllocation /net--10.0.0.1 cannot be read, correct or delete it: "
			if strings.Contains(sent, `"nodeName":7`) && !strings.Contains(ours[0].Err, named) {
				t.Errorf("error %q, want %q in it", ours[0].Err, named)
			}
			for i := range ours {
				ours[i].Err = strings.Replace(ours[i].Err, named, "", 1)
			}
			if !equality.Semantic.DeepEqual(theirs, ours) {
				t.Errorf("the generated client reads it as\n%+v\nand the controller as\n%+v", theirs, ours)
			}
		})
	}
	list := []byte(string(objectPrefix) + `IPAllocationList","metadata":{},"items":[` + object + "," + strings.Replace(object, `"nodeName":"n"`, `"nodeName":7`, 1) + "]}")
	if _, _, err := (objects{decoder}).Decode(list, nil, &v1alpha1.IPAllocationList{}); err == nil || !strings.HasPrefix(err.Error(), "IPAllocation /net--10.0.0.1 cannot be read") {
		t.Errorf("of a list: %v", err)
	}
	for name, sent := range map[string]string{
		"two objects":    `{"type":"ADDED","object":` + object + `,"object":` + object + `}`,
		"a field beside": `{"type":"ADDED","object":` + object + `,"more":{}}`,
	} {
		t.Run(name, func(t *testing.T) { // no API server writes it
			if got := watched(t, codecs{scheme.Codecs.WithoutConversion()}, sent); len(got) != 1 || got[0].Object != nil || got[0].Err == "" {
				t.Errorf("got %+v, want an error", got)
			}
		})
	}
}

// anEvent is what a watch told, or why it ended.
type anEvent struct {
	Type   string
	Object runtime.Object
	Err    string
}

// watched decodes a stream as client-go does.
func watched(t *testing.T, with runtime.NegotiatedSerializer, sent string) (out []anEvent) {
	t.Helper()
	object, event, framer, err := runtime.NewClientNegotiator(with, groupVersion).StreamDecoder("application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	reader := framer.NewFrameReader(io.NopCloser(bytes.NewBufferString(sent)))
	decoder := restwatch.NewDecoder(streaming.NewDecoder(reader, event), object)
	for {
		kind, obj, err := decoder.Decode()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			return append(out, anEvent{Err: err.Error()})
		}
		out = append(out, anEvent{Type: string(kind), Object: obj})
	}
}

// The common case is the one that is not read nine times.
func BenchmarkDecoding(b *testing.B) {
	object := string(objectPrefix) + `IPAllocation","metadata":{"name":"net--10.0.0.1","managedFields":[{"manager":"` + strings.Repeat("m", 400) + `"}]},"spec":{"address":"10.0.0.1"}}`
	data := []byte(`{"type":"ADDED","object":` + object + "}\n")
	for name, with := range map[string]runtime.NegotiatedSerializer{"theirs": scheme.Codecs.WithoutConversion(), "ours": codecs{scheme.Codecs.WithoutConversion()}} {
		b.Run(name, func(b *testing.B) {
			obj, event, _, err := runtime.NewClientNegotiator(with, groupVersion).StreamDecoder("application/json", nil)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				var got metav1.WatchEvent
				if _, _, err := event.Decode(data, nil, &got); err != nil {
					b.Fatal(err)
				}
				if _, err := runtime.Decode(obj, got.Object.Raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
