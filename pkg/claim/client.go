// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"encoding/json"
	"strconv"

	"k8s.io/client-go/rest"
)

// Of these forms the API server sends metadata only: the typed client has no words
// for them.
const (
	metadataOnly     = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	metadataOnlyList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

// listMetadata reads a page of a list of allocations.
func (c *Claimer) listMetadata(ctx context.Context, selector, next string, into any) error {
	return decode(c.Client.RESTClient().Get().Namespace(c.Namespace).Resource("ipallocations").
		Param("labelSelector", selector).Param("limit", strconv.Itoa(pageSize)).Param("continue", next).
		SetHeader("Accept", metadataOnlyList).Do(ctx), into)
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
