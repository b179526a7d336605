// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Pools are the pools of one namespace in the API server, whatever their kinds. Each
// method makes one request, and returns its error as it is.
type Pools struct {
	// Client of this project's API group.
	Client rest.Interface
	// Namespace of the pools.
	Namespace string
}

// Pools returns the pools of the ledger's namespace.
func (l *Ledger) Pools() Pools { return Pools{Client: l.Client.RESTClient(), Namespace: l.Namespace} }

// Get reads a pool as etcd has it now.
func (p Pools) Get(ctx context.Context, ref v1alpha1.PoolReference) (*pool.Object, error) {
	return p.GetSince(ctx, ref, "")
}

// GetSince reads a pool from the API server's watch cache, not older than a resource version;
// if that is "", it is Get.
func (p Pools) GetSince(ctx context.Context, ref v1alpha1.PoolReference, version string) (*pool.Object, error) {
	request := p.named(p.Client.Get(), ref)
	if version != "" {
		request.Param("resourceVersion", version)
	}
	return read(ctx, request, ref.Kind)
}

// metadataOnly makes the API server send metadata only. The typed client cannot ask for
// that.
const metadataOnly = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

// PoolMetadata reads a pool's metadata from the API server's watch cache, which may be some
// milliseconds late.
func (l *Ledger) PoolMetadata(ctx context.Context, ref v1alpha1.PoolReference) (*metav1.ObjectMeta, error) {
	return l.poolMetadata(ctx, ref, "0")
}

// PoolMetadataNow is PoolMetadata as etcd has it now.
func (l *Ledger) PoolMetadataNow(ctx context.Context, ref v1alpha1.PoolReference) (*metav1.ObjectMeta, error) {
	return l.poolMetadata(ctx, ref, "")
}

func (l *Ledger) poolMetadata(ctx context.Context, ref v1alpha1.PoolReference, version string) (meta *metav1.ObjectMeta, err error) {
	p := l.Pools()
	err = Retry(ctx, func(ctx context.Context) (err error) {
		request := p.named(p.Client.Get(), ref)
		if version != "" {
			request.Param("resourceVersion", version)
		}
		meta, err = metadata(ctx, request)
		return err
	})
	return meta, err
}

func metadata(ctx context.Context, request *rest.Request) (*metav1.ObjectMeta, error) {
	var obj struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
	}
	err := readAs(ctx, request, metadataOnly, &obj)
	return &obj.Metadata, err
}

// readAs sends a request for an answer of another form than the typed client knows, and
// reads the JSON into out.
func readAs(ctx context.Context, request *rest.Request, form string, out any) error {
	result := request.SetHeader("Accept", form).Do(ctx)
	if err := result.Error(); err != nil { // says more than the error of Raw
		return err
	}
	data, err := result.Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(data, out)
}

// PatchStatus writes a part of a pool's status, and returns the pool's metadata as it is then. The
// rest of the answer would be as large as the pool.
func (p Pools) PatchStatus(ctx context.Context, ref v1alpha1.PoolReference, as types.PatchType, body []byte, opts metav1.PatchOptions) (*metav1.ObjectMeta, error) {
	return metadata(ctx, p.named(p.Client.Patch(as), ref).SubResource("status").VersionedParams(&opts, scheme.ParameterCodec).Body(body))
}

func (p Pools) named(request *rest.Request, ref v1alpha1.PoolReference) *rest.Request {
	return request.Namespace(p.Namespace).Resource(pool.Resource(ref.Kind).Resource).Name(ref.Name)
}

// read sends a request that is answered with a pool.
func read(ctx context.Context, request *rest.Request, kind v1alpha1.PoolKind) (*pool.Object, error) {
	obj := pool.New(kind)
	if err := request.Do(ctx).Into(obj); err != nil {
		return nil, err
	}
	return pool.ObjectOf(obj), nil
}
