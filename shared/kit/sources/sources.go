// Package sources configures the client of sources from a kit. Only the functions that
// read sources import it, so that the others do not link a registry client.
package sources

import (
	"net/url"

	"imageroot/shared/config"
	"imageroot/shared/kit"
	"imageroot/shared/netpolicy"
	"imageroot/shared/source"
)

// New returns the client of sources with the settings of k. Its address policy is the
// default and AllowNet, without the address of the S3 server. The error is that of
// netpolicy.Parse.
func New(k *kit.Kit) (*source.Client, error) {
	base := netpolicy.Policy{Private: k.PrivateSources}
	if k.Server != "" {
		base.Endpoints = []string{k.Server}
	}
	if k.ProxyURL != "" {
		proxy, err := url.Parse(k.ProxyURL)
		if err != nil {
			return nil, err
		}
		base.Proxy = proxy
	}
	policy, err := netpolicy.Parse(k.AllowNet, base)
	if err != nil {
		return nil, err
	}
	return source.New(source.Config{
		Policy: policy, DockerConfig: k.DockerConfig, PlainHTTP: k.PlainHTTP, UserAgent: "imageroot/" + config.Version(), UnusedProxy: k.UnusedProxy,
	}), nil
}
