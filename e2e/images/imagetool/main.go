// imagetool writes an OCI image layout from directories, one gzip layer per directory, the way
// docker and containerd would have stored them:
//
//	imagetool [-env K=V]... [-cmd A,B] [-entrypoint A,B] [-nanoseconds-in-top] OUT NAME LAYER-DIR...
//
// A layer directory is a plain root or the upper directory of an overlay mount. OUT becomes an
// OCI layout whose one manifest is tagged "latest", and localhost/NAME:latest for containerd.
package main

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"hash"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// epoch is the latest time in any image: newer files carry it instead of the time they were built.
var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	log.SetFlags(0)
	env := list{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	flag.Var(&env, "env", "environment variable of the image, KEY=VALUE")
	cmd := flag.String("cmd", "", "default command, comma separated")
	entrypoint := flag.String("entrypoint", "", "entrypoint, comma separated")
	exact := flag.Bool("nanoseconds-in-top", false, "keep fractions of seconds in the last layer")
	flag.Parse()
	if flag.NArg() < 3 {
		log.Fatal("usage: imagetool [flags] OUT NAME LAYER-DIR...")
	}
	layout := layout{flag.Arg(0)}
	if err := os.MkdirAll(layout.blobs(), 0o755); err != nil {
		log.Fatal(err)
	}
	image := image{Architecture: runtime.GOARCH, OS: "linux", Created: epoch}
	image.Config = runConfig{Env: env, Cmd: words(*cmd), Entrypoint: words(*entrypoint), WorkingDir: "/"}
	image.RootFS.Type = "layers"
	manifest := manifest{SchemaVersion: 2, MediaType: mediaManifest}
	dirs := flag.Args()[2:]
	for i, dir := range dirs {
		layer, diffID, err := layout.addLayer(dir, *exact && i == len(dirs)-1)
		if err != nil {
			log.Fatalf("layer %s: %v", dir, err)
		}
		manifest.Layers = append(manifest.Layers, layer)
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, diffID)
		image.History = append(image.History, history{Created: epoch, CreatedBy: filepath.Base(dir)})
	}
	if err := layout.finish(flag.Arg(1), image, manifest); err != nil {
		log.Fatal(err)
	}
}

func words(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// layout is the folder of an OCI image layout.
type layout struct{ dir string }

func (l layout) blobs() string { return filepath.Join(l.dir, "blobs", "sha256") }

// addLayer stores dir as a gzip-compressed tar; it returns its descriptor and the digest of the plain tar.
func (l layout) addLayer(dir string, nanoseconds bool) (descriptor, string, error) {
	var size counter
	temp, err := os.Create(filepath.Join(l.dir, "layer.tmp"))
	if err != nil {
		return descriptor{}, "", err
	}
	defer temp.Close()
	compressed, plain := sha256.New(), sha256.New()
	zip := gzip.NewWriter(io.MultiWriter(temp, compressed, &size))
	if err := writeTar(io.MultiWriter(zip, plain), dir, nanoseconds); err != nil {
		return descriptor{}, "", err
	}
	if err := zip.Close(); err != nil {
		return descriptor{}, "", err
	}
	d := descriptor{MediaType: mediaLayer, Digest: digest(compressed), Size: int64(size)}
	return d, digest(plain), os.Rename(temp.Name(), filepath.Join(l.blobs(), d.Digest[len("sha256:"):]))
}

// finish stores configuration and manifest and names the image in index.json.
func (l layout) finish(name string, image image, manifest manifest) (err error) {
	if manifest.Config, err = l.addJSON(mediaConfig, image); err != nil {
		return err
	}
	top, err := l.addJSON(mediaManifest, manifest)
	if err != nil {
		return err
	}
	top.Annotations = map[string]string{
		"org.opencontainers.image.ref.name": "latest",
		"io.containerd.image.name":          "localhost/" + name + ":latest",
	}
	top.Platform = &platform{image.Architecture, image.OS}
	index := map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []descriptor{top}}
	text, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), text, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

func (l layout) addJSON(mediaType string, value any) (descriptor, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(text)
	name := hex.EncodeToString(sum[:])
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + name, Size: int64(len(text))}
	return d, os.WriteFile(filepath.Join(l.blobs(), name), text, 0o644)
}

func digest(h hash.Hash) string { return fmt.Sprintf("sha256:%x", h.Sum(nil)) }

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }
