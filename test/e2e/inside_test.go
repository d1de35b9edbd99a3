package e2e

import (
	"encoding/json"
	"fmt"
	"testing"

	"imageroot/test/need"
)

// The answer about an uploaded image has what is inside its disk, plain or compressed.
func TestInside(t *testing.T) {
	t.Parallel()
	need.Programs(t, "mkfs.ext4", "xz")
	m := newMaker(t)
	plain := m.make(`mkdir -p root/etc; echo 'ID=debian
VERSION_ID="13"' >root/etc/os-release; mkfs.ext4 -q -L rootfs -d root x 8M; cp x keep`)
	packed := m.make(`xz -c keep >x`)
	s := Start(t, Options{})
	for name, image := range map[string][]byte{"plain.img": plain, "packed.img.xz": packed} {
		sha256 := s.Put(t, name, image).SHA256
		eventually(t, within, name+" is inspected", func() error {
			var got struct {
				Inside *struct {
					System, Version string
					Partitions      []struct {
						Filesystem string
						Label      string `json:"fs_label"`
					}
				}
			}
			r := s.get(t, "/catalog/images/"+sha256)
			if err := json.Unmarshal(r.Body, &got); err != nil {
				return err
			}
			in := got.Inside
			if in == nil || in.System != "debian" || in.Version != "13" || len(in.Partitions) != 1 || in.Partitions[0].Filesystem != "ext4" || in.Partitions[0].Label != "rootfs" {
				return fmt.Errorf("it has %s", r.Body)
			}
			return nil
		})
	}
}
