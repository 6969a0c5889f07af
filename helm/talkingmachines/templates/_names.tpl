{{/* Names, labels and images. Every template says of what it is a part: gateway, bridge, redis, score, vae. */}}

{{/* Short, because KubeRay makes longer names of it. */}}
{{- define "tm.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc 14 | trimSuffix "-") .Chart.Name -}}
{{- end -}}
{{- end -}}

{{/* (root, part) → labels of an object */}}
{{- define "tm.labels" -}}
{{- $root := index . 0 -}}
{{ include "tm.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: talkingmachines
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* (root, part) → labels that select its pods */}}
{{- define "tm.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* (root, image) → reference; image is gateway, bridge, engine or loadtest */}}
{{- define "tm.image" -}}
{{- $root := index . 0 -}}{{- $image := $root.Values.image -}}{{- $name := index . 1 -}}
{{- $repository := printf "%s/%s" $image.registry $name -}}
{{- with index $image.digests $name -}}
{{- printf "%s@%s" $repository . -}}
{{- else -}}
{{- printf "%s:%s" $repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* (root, part) → name of the part's service account */}}
{{- define "tm.serviceAccount" -}}
{{- printf "%s-%s" (include "tm.fullname" (index . 0)) (index . 1) -}}
{{- end -}}
