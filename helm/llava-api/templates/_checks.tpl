{{/* Values about weights and images that do not fit together; templates/checks.yaml has the others. */}}

{{/* (where, server) */}}
{{- define "llava-api.checkWeights" -}}
{{- $at := index . 0 -}}
{{- with index . 1 }}
{{- $volume := .persistence.volume }}
{{- $adapters := include "llava-api.adapters" . | fromYaml }}
{{- if and .persistence.volume (or .persistence.enabled .persistence.existingClaim) }}{{ fail (printf "%spersistence.volume takes the place of a claim: leave persistence.enabled and existingClaim out" $at) }}{{ end }}
{{- if and .cache.enabled (has "ReadWriteOncePod" .cache.accessModes) (or (gt (int .replicas) 1) .autoscaling.enabled .keda.enabled) }}{{ fail (printf "%sseveral pods cannot mount a claim that is ReadWriteOncePod: cache.accessModes" $at) }}{{ end }}
{{- if and .cache.enabled (gt (int .multiNode.nodes) 1) (not (has "ReadWriteMany" .cache.accessModes)) }}{{ fail (printf "%smultiNode needs a claim that several nodes can mount: cache.accessModes [ReadWriteMany]" $at) }}{{ end }}
{{- if and .download.command (eq .download.mode "off") }}{{ fail (printf "%sdownload.command is run by download.mode initContainer or job: choose one" $at) }}{{ end }}
{{- if and .download.image (not .download.command) }}{{ fail (printf "%sdownload.image is the image of download.command, which is missing" $at) }}{{ end }}
{{- if ne .download.mode "off" }}
{{- $mode := .download.mode }}
{{- if not (or (include "llava-api.isHubId" .model) .download.command .download.also $adapters.ids) }}{{ fail (printf "%sdownload.mode %s needs a hub id, and %s is not one" $at $mode .model) }}{{ end }}
{{- range .download.also }}
{{- if not (include "llava-api.isHubId" .) }}{{ fail (printf "%sdownload.mode %s needs a hub id, and %s is not one" $at $mode .) }}{{ end }}
{{- end }}
{{- if .hub.offline }}{{ fail (printf "%sdownload.mode %s cannot fetch anything while hub.offline is set" $at $mode) }}{{ end }}
{{- if include "llava-api.readOnlyVolume" . }}{{ fail (printf "%sdownload.mode %s cannot write to a volume that is read-only: set it to off" $at $mode) }}{{ end }}
{{- if eq $mode "job" }}
{{- range list "emptyDir" "ephemeral" "hostPath" }}
{{- if hasKey $volume . }}{{ fail (printf "%sdownload.mode job fills a volume that pods of all nodes share, and %s is not one" $at .) }}{{ end }}
{{- end }}
{{- if and .persistence.enabled (not (has "ReadWriteMany" .persistence.accessModes)) }}{{ fail (printf "%sdownload.mode job needs a claim that the Job's node and the server's can mount: persistence.accessModes [ReadWriteMany], also to describe an existing claim. With ReadWriteOnce use download.mode initContainer" $at) }}{{ end }}
{{- if not (or .persistence.enabled .persistence.volume) }}{{ fail (printf "%sdownload.mode job fills a claim: set persistence.enabled" $at) }}{{ end }}
{{- end }}
{{- end }}
{{- if not (or .persistence.enabled .persistence.volume .download.command .initContainers .volumeMounts) }}
{{- range prepend $adapters.folders .model }}
{{- if hasPrefix "/data/" . }}{{ fail (printf "%snothing puts %s into /data, which is an emptyDir: give a hub id, a claim that holds it (persistence.existingClaim) or a download.command" $at .) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* (where, server, its image, image -> whether an earlier model computes on GPUs with it) */}}
{{- define "llava-api.checkImage" -}}
{{- $at := index . 0 -}}
{{- $image := index . 2 -}}
{{- $seen := index . 3 -}}
{{- with index . 1 }}
{{- $onGpu := gt (int .gpu.count) 0 }}
{{- if and $onGpu (not (hasPrefix "nvidia.com/" .gpu.resource)) (not (or .image.tag .image.digest)) }}
{{- fail (printf "%sthe chart's own image is for NVIDIA's GPUs, and gpu.resource is %s: build one with vLLM for these devices and name it (image.repository and image.tag)" $at .gpu.resource) }}
{{- end }}
{{- if and (hasKey $seen $image) (ne (get $seen $image) $onGpu) }}
{{- fail (printf "%sthe image %s is another model's too, and only one of the two computes on GPUs, which needs another build of vLLM: give each its own image.tag, or none" $at $image) }}
{{- end }}
{{- $_ := set $seen $image $onGpu }}
{{- end }}
{{- end }}
