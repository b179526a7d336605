// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"encoding/json"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Client has a REST client of this project's API group. A generated clientset is
// one, but this package does without: a typed client links what its fake needs,
// OpenAPI and server-side apply, and that alone is a quarter of the time that a
// process for one call takes to start.
type Client interface{ RESTClient() rest.Interface }

// The API's resources.
const (
	allocations = "ipallocations"
	ipPools     = "ippools"
	cidrPools   = "cidrpools"
)

// Of these forms the API server sends metadata only.
const (
	metadataOnly     = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	metadataOnlyList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

func (c *Claimer) get(ctx context.Context, resource, name string, into any) error {
	return decode(c.Client.RESTClient().Get().Namespace(c.Namespace).Resource(resource).Name(name).Do(ctx), into)
}

func (c *Claimer) getAllocation(ctx context.Context, name string) (*v1alpha1.IPAllocation, error) {
	alloc := &v1alpha1.IPAllocation{}
	return alloc, c.get(ctx, allocations, name, alloc)
}

// createAllocation returns the UID of what it created.
func (c *Claimer) createAllocation(ctx context.Context, alloc *v1alpha1.IPAllocation) (types.UID, error) {
	body, err := json.Marshal(alloc)
	if err != nil {
		return "", err
	}
	var made struct {
		Metadata struct {
			UID types.UID `json:"uid"`
		} `json:"metadata"`
	}
	err = decode(c.Client.RESTClient().Post().Namespace(c.Namespace).Resource(allocations).
		SetHeader("Content-Type", "application/json").Body(body).Do(ctx), &made)
	return made.Metadata.UID, err
}

// deleteAllocation deletes an allocation that still has this UID.
func (c *Claimer) deleteAllocation(ctx context.Context, name string, uid types.UID) error {
	body, err := json.Marshal(metav1.DeleteOptions{
		TypeMeta:      metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"},
		Preconditions: &metav1.Preconditions{UID: &uid},
	})
	if err != nil {
		return err
	}
	return c.Client.RESTClient().Delete().Namespace(c.Namespace).Resource(allocations).Name(name).
		SetHeader("Content-Type", "application/json").Body(body).Do(ctx).Error()
}

// listAllocations reads a page of a list, in the form that accept says.
func (c *Claimer) listAllocations(ctx context.Context, selector, next, accept string, into any) error {
	return decode(c.Client.RESTClient().Get().Namespace(c.Namespace).Resource(allocations).
		Param("labelSelector", selector).Param("limit", strconv.Itoa(pageSize)).Param("continue", next).
		SetHeader("Accept", accept).Do(ctx), into)
}

// decode reads an answer of which the client's scheme need not know the type.
func decode(result rest.Result, into any) error {
	if err := result.Error(); err != nil { // says more than the error of Raw
		return err
	}
	data, err := result.Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}
