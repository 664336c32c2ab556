"""Operations on artifacts: upload and download; each returns the data."""

import hashlib
import json
from typing import Any

from loopback_wandb.state import ENTITY, Artifact, ServerState


class Artifacts(ServerState):
    """Handlers of these operations."""

    def _on_artifact_type(self, v: dict[str, Any]) -> Any:
        name = v["name"].partition(":")[0]
        types = [{"artifactType": {"name": artifact.type}} for artifact in self.artifacts if artifact.name == name]
        return {"project": {"artifact": types[-1] if types else None}}

    def _on_create_artifact(self, v: dict[str, Any]) -> Any:
        """An artifact with the same name and content is the same version."""
        fields = v["input"]
        name, digest = fields["artifactCollectionName"], fields["digest"]
        artifact = next((known for known in self.artifacts if (known.name, known.digest) == (name, digest)), None)
        if artifact is None:
            metadata = json.loads(fields["metadata"] or "{}")
            artifact = Artifact(f"a{len(self.artifacts)}", name, fields["artifactTypeName"], digest, metadata)
            self.artifacts.append(artifact)
        if fields["runName"] not in artifact.runs:
            artifact.runs.append(fields["runName"])
        sequence = {"latestArtifact": {"id": artifact.id} if artifact.state == "COMMITTED" else None}
        answer = {"id": artifact.id, "state": artifact.state, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": answer}}

    def _on_create_artifact_manifest(self, v: dict[str, Any]) -> Any:
        id_ = f"{v['artifactID']}-manifest"
        file = {"id": id_, "uploadUrl": f"{self.url}/upload/{id_}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": id_, "file": file}}}

    def _on_update_artifact_manifest(self, v: dict[str, Any]) -> Any:
        id_ = v["artifactManifestID"]
        file = {"id": id_, "uploadUrl": f"{self.url}/upload/{id_}", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": id_, "file": file}}}

    def _on_create_artifact_files(self, v: dict[str, Any]) -> Any:
        edges = []
        for file in v["input"]["artifactFiles"]:
            path = f"{file['artifactID']}-files/{file['name']}"
            own = {"artifact": {"id": file["artifactID"]}, "uploadMultipartUrls": None, "uploadHeaders": []}
            edges.append({"node": {"storagePath": path, "uploadUrl": f"{self.url}/upload/{path}", **own}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_commit_artifact(self, v: dict[str, Any]) -> Any:
        artifact = next(artifact for artifact in self.artifacts if artifact.id == v["artifactID"])
        artifact.state = "COMMITTED"
        prefix = f"/upload/{artifact.id}-files/"
        artifact.files = {
            path.removeprefix(prefix): content for path, content in self._uploads.items() if path.startswith(prefix)
        }
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _on_artifact_membership_by_name(self, v: dict[str, Any]) -> Any:
        """There is one version of each name here, which all aliases refer to."""
        artifact = self._named(v["name"].partition(":")[0])
        if artifact is None:
            return {"project": {"artifactCollectionMembership": None}}
        project = {"id": "p", "internalId": "1", "name": v["project"], "entity": {"name": ENTITY}}
        collection = {"__typename": "ArtifactSequence", "name": artifact.name, "project": project}
        times = {"createdAt": "2026-11-21T13:00:00Z", "updatedAt": None}
        more = {"ttlDurationSeconds": 0, "ttlIsInherited": True, "tags": [], "historyStep": None, "commitHash": None}
        sizes = {"size": sum(map(len, artifact.files.values())), "fileCount": len(artifact.files)}
        node = {
            "__typename": "Artifact",
            "id": artifact.id,
            "artifactSequence": collection,
            "versionIndex": 0,
            "artifactType": {"name": artifact.type},
            "description": None,
            "metadata": json.dumps(artifact.metadata),
            "state": artifact.state,
            "digest": artifact.digest,
            "aliases": [],
            **times,
            **more,
            **sizes,
        }
        own = {"__typename": "ArtifactCollectionMembership", "id": f"m-{artifact.id}", "versionIndex": 0, "aliases": []}
        membership = {**own, **times, "artifactCollection": collection, "artifact": node}
        return {"project": {"artifactCollectionMembership": membership}}

    def _on_fetch_artifact_manifest(self, v: dict[str, Any]) -> Any:
        url = f"{self.url}/upload/{v['id']}-manifest"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _named(self, name: str) -> Artifact | None:
        return next((artifact for artifact in self.artifacts if artifact.name == name), None)

    def _content(self, path: str) -> bytes:
        """The file of an artifact whose MD5 is in the path."""
        contents = (content for artifact in self.artifacts for content in artifact.files.values())
        return next(content for content in contents if hashlib.md5(content).hexdigest() in path)
