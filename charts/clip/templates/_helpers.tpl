{{/* Prefix of all names. */}}
{{- define "clip.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* The image, by digest when there is one. */}}
{{- define "clip.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Labels by which a component's pods are selected: (list $ "operator"). They never change. */}}
{{- define "clip.selector" -}}
app.kubernetes.io/name: clip
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of every object: (list $ "operator"). */}}
{{- define "clip.labels" -}}
{{ include "clip.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{/* Where Jobs and nodes find the archive service. */}}
{{- define "clip.archiveService" -}}
http://{{ include "clip.fullname" . }}-archives.{{ .Release.Namespace }}.svc
{{- end }}

{{/* The node plugin's folder among kubelet's. */}}
{{- define "clip.pluginDir" -}}
{{ .Values.csiNode.kubeletDir }}/plugins/csi.clip.dev
{{- end }}

{{/* Where the node plugin finds the keeper. */}}
{{- define "clip.keeperSocket" -}}
{{ include "clip.pluginDir" . }}/keeper.sock
{{- end }}

{{/* Arguments that operator and node plugin understand alike. */}}
{{- define "clip.commonArgs" -}}
{{- range .Values.registries }}
{{- if .plainHTTP }}
- --plain-http={{ .host }}
{{- end }}
{{- end }}
{{- if include "clip.registryCAs" . }}
- --ca-cert=/etc/clip/registries/ca.pem
{{- end }}
- --log-format={{ .Values.log.format }}
{{- if .Values.log.verbose }}
- --verbose
{{- end }}
{{- end }}

{{/* Certificates of the registries' own authorities, one PEM text; nothing when there are none. */}}
{{- define "clip.registryCAs" -}}
{{- range .Values.registries }}
{{- with .ca }}
{{ trim . }}
{{- end }}
{{- end }}
{{- end }}

{{/* What changes when they do: programs read them when they start. */}}
{{- define "clip.registriesChecksum" -}}
{{- with include "clip.registryCAs" . -}}
checksum/registries: {{ sha256sum . }}
{{- end -}}
{{- end }}

{{- define "clip.registriesMount" -}}
{{- if include "clip.registryCAs" . -}}
- {name: registries, mountPath: /etc/clip/registries, readOnly: true}
{{- end -}}
{{- end }}

{{- define "clip.registriesVolume" -}}
{{- if include "clip.registryCAs" . -}}
- name: registries
  configMap: {name: {{ include "clip.fullname" . }}-registries}
{{- end -}}
{{- end }}
