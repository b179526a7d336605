// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
)

// codecs are those of the generated client, with another decoder for JSON. Theirs reads each
// event of a watch nine times: for its end, and for the kind and the fields of the event and of
// its object, each of these once for the syntax and once for the content. At a start these are
// 100,000 objects of a kilobyte, and later pools of half a megabyte each. What an API server
// writes first is always the same; so this one does not look further for the kind, and takes the
// object from the event as it is. Anything else goes to the decoder of the client.
type codecs struct{ runtime.NegotiatedSerializer }

func (codecs) SupportedMediaTypes() []runtime.SerializerInfo {
	return []runtime.SerializerInfo{{
		MediaType: runtime.ContentTypeJSON, MediaTypeType: "application", MediaTypeSubType: "json",
		EncodesAsText: true, Serializer: objects{decoder},
		StreamSerializer: &runtime.StreamSerializerInfo{EncodesAsText: true, Serializer: events{decoder}, Framer: json.Framer},
	}}
}

var decoder = json.NewSerializerWithOptions(kinds{}, scheme.Scheme, scheme.Scheme, json.SerializerOptions{})

// kinds tells the kind of an object from its first bytes.
type kinds struct{ json.SimpleMetaFactory }

var groupVersion = schema.GroupVersion(v1alpha1.GroupVersion)

var objectPrefix = []byte(`{"apiVersion":"` + groupVersion.String() + `","kind":"`)

func (k kinds) Interpret(data []byte) (*schema.GroupVersionKind, error) {
	if rest, ours := bytes.CutPrefix(data, objectPrefix); ours {
		kind, _, _ := bytes.Cut(rest, []byte(`","`))
		if gvk := groupVersion.WithKind(string(kind)); scheme.Scheme.Recognizes(gvk) {
			return &gvk, nil
		}
	}
	return k.SimpleMetaFactory.Interpret(data)
}

// objects decodes objects, and says which one it cannot: it ends the list and the watch of all.
type objects struct{ runtime.Serializer }

func (o objects) Decode(data []byte, gvk *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	obj, kind, err := o.Serializer.Decode(data, gvk, into)
	if err != nil {
		err = o.named(data, err)
	}
	return obj, kind, err
}

// named returns the error of an object, or of the first in a list that has one, with its name.
func (o objects) named(data []byte, err error) error {
	var it struct {
		metav1.PartialObjectMetadata `json:",inline"`

		Items []stdjson.RawMessage `json:"items"`
	}
	if stdjson.Unmarshal(data, &it) != nil {
		return err
	}
	for _, item := range it.Items {
		if _, _, err := o.Decode(item, nil, nil); err != nil {
			return err
		}
	}
	if it.Name == "" {
		return err
	}
	return fmt.Errorf("%s %s/%s cannot be read, correct or delete it: %w", it.Kind, it.Namespace, it.Name, err)
}

// events decodes the events of a watch. The object of one is valid until the next is read, as
// client-go's decoder of watches, which decodes the object at once, needs it; and it is there
// that the syntax of the object is looked at.
type events struct{ runtime.Serializer }

func (e events) Decode(data []byte, gvk *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	event, isEvent := into.(*metav1.WatchEvent)
	if !isEvent {
		return e.Serializer.Decode(data, gvk, into)
	}
	rest, typed := bytes.CutPrefix(data, []byte(`{"type":"`))
	name, object, cut := bytes.Cut(rest, []byte(`","object":`))
	object, closed := bytes.CutSuffix(bytes.TrimSpace(object), []byte("}"))
	if !typed || !cut || !closed || bytes.ContainsAny(name, `\"`) || !bytes.HasPrefix(object, objectPrefix) {
		return e.Serializer.Decode(data, gvk, into)
	}
	event.Type, event.Object.Raw = string(name), object
	return event, &schema.GroupVersionKind{}, nil
}
