// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/pager"

	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
)

// Cluster is what is asked.
type Cluster struct {
	ipam clientv1alpha1.NvIpamV1alpha1Interface
	kube kubernetes.Interface
	// Namespace of the pools; "" looks in all namespaces.
	Namespace string
	// Fallback is the namespace to look in if nobody may look in all of them; "" is an
	// error then.
	Fallback string
	// Progress is told how many objects of a long list have been read; nil tells nobody.
	Progress func(what string, read int)

	limited bool // to Fallback
}

// Limited returns the namespace to which answers are limited, because whoever asks may not
// look in all; "" if they are not.
func (c *Cluster) Limited() string {
	if !c.limited {
		return ""
	}
	return c.Namespace
}

// Connect returns the cluster of a client configuration.
func Connect(config *rest.Config) (*Cluster, error) {
	config = rest.CopyConfig(config)
	// One question at a time: the API server says if it is too much.
	config.QPS = -1
	ipam, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	config.AcceptContentTypes, config.ContentType = "application/vnd.kubernetes.protobuf,application/json", "application/vnd.kubernetes.protobuf"
	kube, err := kubernetes.NewForConfig(config)
	return &Cluster{ipam: ipam, kube: kube}, err
}

// pageSize bounds what one answer of a list holds in memory.
const pageSize = 1000

// each lists in pages, and calls f with each object.
func (c *Cluster) each(ctx context.Context, what string, opts metav1.ListOptions, list pager.ListPageFunc, f func(runtime.Object)) error {
	p := pager.New(func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
		obj, err := list(ctx, opts)
		if next := remainder(err); next != "" {
			opts.Continue = next
			return list(ctx, opts)
		}
		return obj, err
	})
	p.PageSize, p.PageBufferSize = pageSize, 1
	read := 0
	err := p.EachListItem(ctx, opts, func(obj runtime.Object) error {
		f(obj)
		if read++; c.Progress != nil && read%pageSize == 0 {
			c.Progress(what, read)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing %s: %w", what, err)
	}
	return nil
}

// pages lists in pages what a request asks for, and calls f with each, as JSON. It asks for
// the next page while f works. It returns the resource version that all of them are of, or
// that of the first page if a later one is newer: see remainder.
func (c *Cluster) pages(ctx context.Context, what string, request func() *rest.Request, f func(data []byte) (items int, err error)) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan []byte, 1)
	failed := make(chan error, 1)
	version := "" // belongs to who asks, until found is closed
	go func() {
		defer close(found)
		page := func(next string) ([]byte, error) {
			return raw(ctx, request().Param("limit", strconv.Itoa(pageSize)).Param("continue", next))
		}
		for next := ""; ; {
			data, err := page(next)
			if rest := remainder(err); rest != "" {
				data, err = page(rest)
			}
			if err == nil {
				var meta metav1.ListMeta
				meta, err = listMeta(data)
				next, version = meta.Continue, cmp.Or(version, meta.ResourceVersion)
			}
			if err != nil {
				failed <- err
				return
			}
			select {
			case found <- data:
			case <-ctx.Done():
				return
			}
			if next == "" {
				return
			}
		}
	}()
	read := 0
	for data := range found {
		n, err := f(data)
		if err != nil {
			return "", fmt.Errorf("listing %s: %w", what, err)
		}
		if read += n; c.Progress != nil {
			c.Progress(what, read)
		}
	}
	select {
	case err := <-failed:
		return "", fmt.Errorf("listing %s: %w", what, err)
	default:
		return version, ctx.Err()
	}
}

// remainder returns what continues a list whose further pages the API server has dropped, in
// the error that says so; "" if it is another error. The pages that follow are newer than
// those before, so no object is missed that was there all the time, and none comes twice.
func remainder(err error) string {
	var status apierrors.APIStatus
	if !apierrors.IsResourceExpired(err) || !errors.As(err, &status) {
		return ""
	}
	return status.Status().Continue
}

// listMeta returns the metadata of a list. The API server writes a list of custom resources
// with its metadata at the end, where they are read without the rest.
func listMeta(data []byte) (metav1.ListMeta, error) {
	const key = `"metadata":`
	if i := bytes.LastIndex(data, []byte(key)); i >= 0 {
		var meta metav1.ListMeta
		tail := json.NewDecoder(bytes.NewReader(data[i+len(key):]))
		if tail.Decode(&meta) == nil && string(bytes.TrimSpace(data[i+len(key)+int(tail.InputOffset()):])) == "}" {
			return meta, nil
		}
	}
	var list struct {
		Metadata metav1.ListMeta `json:"metadata"`
	}
	err := json.Unmarshal(data, &list)
	return list.Metadata, err
}

// object is what is read of an object of another project's.
type object struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     json.RawMessage   `json:"spec"`
}

// foreign lists objects of another project's, as resource GROUP/VERSION/RESOURCE. known is
// false if the API server does not know the resource.
func (c *Cluster) foreign(ctx context.Context, resource, namespace string) (all []object, known bool, err error) {
	request := func() *rest.Request { return c.ipam.RESTClient().Get().AbsPath(foreignPath(resource, namespace)) }
	_, err = c.pages(ctx, resource, request, func(data []byte) (int, error) {
		var page struct {
			Items []object `json:"items"`
		}
		err := json.Unmarshal(data, &page)
		all = append(all, page.Items...)
		return len(page.Items), err
	})
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	return all, true, err
}

// foreignOne reads one; nil if there is none.
func (c *Cluster) foreignOne(ctx context.Context, resource, namespace, name string) (*object, error) {
	data, err := raw(ctx, c.ipam.RESTClient().Get().AbsPath(foreignPath(resource, namespace), name))
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading %s %s/%s: %w", resource, namespace, name, err)
	}
	out := &object{}
	return out, json.Unmarshal(data, out)
}

func raw(ctx context.Context, request *rest.Request) ([]byte, error) {
	result := request.Do(ctx)
	if err := result.Error(); err != nil { // says more than the error of Raw
		return nil, err
	}
	return result.Raw()
}

func foreignPath(resource, namespace string) string {
	group, name := resource[:strings.LastIndex(resource, "/")], resource[strings.LastIndex(resource, "/")+1:]
	if namespace != "" {
		group += "/namespaces/" + namespace
	}
	return "/apis/" + group + "/" + name
}
