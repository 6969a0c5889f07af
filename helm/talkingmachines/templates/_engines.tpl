{{/* Numbers of the Ray clusters, derived from the settings of score and VAE and stated nowhere else. */}}

{{/* root → JSON list of clusters: {name, members, workers} */}}
{{- define "tm.clusters" -}}
{{- $values := .Values -}}
{{- if eq $values.engines.layout "together" -}}
{{- list (dict "name" "engines" "members" (list "score" "vae") "workers" $values.score.workers) | toJson -}}
{{- else -}}
{{- list (dict "name" "score" "members" (list "score") "workers" $values.score.workers) (dict "name" "vae" "members" (list "vae") "workers" $values.vae.workers) | toJson -}}
{{- end -}}
{{- end -}}

{{/* (root, engine) → name of the cluster that it runs in */}}
{{- define "tm.clusterOf" -}}
{{- $root := index . 0 -}}
{{- eq $root.Values.engines.layout "together" | ternary "engines" (index . 1) -}}
{{- end -}}

{{/* (root, cluster) → JSON: cpus and gpus of a worker pod, fewest and most pods, seconds that attachments last, and in which gateways open their connections anew */}}
{{- define "tm.numbers" -}}
{{- $root := index . 0 -}}{{- $cluster := index . 1 -}}
{{- $perPod := $cluster.workers.replicasPerPod -}}
{{- $cpus := 0.0 -}}{{- $gpus := 0.0 -}}{{- $least := 0 -}}{{- $most := 0 -}}{{- $longest := 0.0 -}}{{- $renewal := 0.0 -}}
{{- range $cluster.members -}}
{{- $settings := (index $root.Values .).settings -}}
{{- $ranks := mulf (default 1 $settings.ranks) $perPod -}}
{{- $cpus = addf $cpus (mulf $ranks $settings.replicas.cpus) -}}
{{- $gpus = addf $gpus (mulf $ranks $settings.replicas.gpus) -}}
{{- $least = max $least (divf $settings.replicas.least $perPod | ceil | int) -}}
{{- $most = max $most (divf $settings.replicas.most $perPod | ceil | int) -}}
{{- $terms := $settings.terms -}}
{{- $longest = maxf $longest (addf (mulf $terms.max_age_seconds (addf 1 $terms.jitter)) $terms.time_left_seconds 1) -}}
{{- $renewal = maxf $renewal (dig . "renew_seconds" 30.0 $root.Values.gateway.settings) -}}
{{- end -}}
{{- /* A renewal comes a fifth late at most, takes up to 10 s, and pauses up to 5 s. */ -}}
{{- $renewal = addf (mulf $renewal 1.2) 15 -}}
{{- dict "cpus" (ceil $cpus | int) "gpus" (ceil $gpus | int) "least" $least "most" $most "longest" (ceil $longest | int) "renewal" (ceil $renewal | int) | toJson -}}
{{- end -}}

{{/* root → folder in which models are */}}
{{- define "tm.models" -}}
{{- eq .Values.model.source "bundled" | ternary "/app/models/tiny" "/models" -}}
{{- end -}}

{{/* (root, engine) → the arguments of its Serve app: the settings, and what the chart knows */}}
{{- define "tm.arguments" -}}
{{- $root := index . 0 -}}{{- $engine := index . 1 -}}
{{- $values := index $root.Values $engine -}}
{{- $cluster := (eq $root.Values.engines.layout "together") | ternary $root.Values.score.workers $values.workers -}}
{{- $own := dict "model" (printf "%s/%s" (include "tm.models" $root) $values.model) -}}
{{- $own = set $own "token_file" "/run/talkingmachines/fleet/token" -}}
{{- /* Twice as many ports as replicas: one that ends may overlap with the one that takes its place. */ -}}
{{- $own = set $own "endpoint" (dict "host" "0.0.0.0" "port" (include "tm.metricsPort" $engine | int) "ports" (mul 2 $cluster.replicasPerPod)) -}}
{{- merge $own (deepCopy $values.settings) | toYaml -}}
{{- end -}}

{{- define "tm.metricsPort" -}}
{{- eq . "score" | ternary 9410 9440 -}}
{{- end -}}

{{- define "tm.modelVolumes" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "claim" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ required "model.claim.name: the claim that holds the models" $model.claim.name }}
    readOnly: true
{{- else if ne $model.source "bundled" }}
- name: models
  emptyDir:
    sizeLimit: {{ $model.size }}
{{- end }}
{{- if eq $model.source "url" }}
- name: fetch
  configMap:
    name: {{ include "tm.fullname" . }}-scripts
{{- end }}
{{- end -}}

{{- define "tm.modelMounts" -}}
{{- if ne .Values.model.source "bundled" }}
- name: models
  mountPath: /models
  readOnly: true
  {{- with .Values.model.claim.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Brings models from a bucket or an image before Ray starts */}}
{{- define "tm.modelInit" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "url" }}
- name: fetch-models
  image: {{ include "tm.image" (list . "engine") }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [python, /scripts/fetch.py, {{ required "model.url.from: where the models are" $model.url.from | quote }}, /models]
  {{- with $model.url.secret }}
  envFrom:
    - secretRef:
        name: {{ . }}
  {{- end }}
  {{- include "tm.containerSecurity" . | nindent 2 }}
  resources:
    {{- toYaml $model.resources | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: fetch
      mountPath: /scripts
      readOnly: true
    - name: tmp
      mountPath: /tmp
{{- else if eq $model.source "image" }}
- name: fetch-models
  image: {{ required "model.image.reference: an image that holds the models" $model.image.reference }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [cp, -r, "{{ $model.image.folder }}/.", /models]
  {{- include "tm.containerSecurity" . | nindent 2 }}
  resources:
    {{- toYaml $model.resources | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
{{- end }}
{{- end -}}
