module github.com/clip-dev/clip/e2e/images/imagetool

go 1.26.0
