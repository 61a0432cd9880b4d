"""Put a probe folder on the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from anydepth.errors import ProbeError
from anydepth.extras import require
from anydepth.reasons import reason


def push_folder(folder: Path, repo_id: str, *, files: Sequence[str], private: bool, message: str) -> str:
    """Upload `files` of `folder` to the model repository `repo_id`, which is made if it is not there; give its address.

    Raises:
        ProbeError: The hub refused it or cannot be reached; the message says what to do.
        MissingExtra: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", extra="transformers")
    errors = require("huggingface_hub.errors", extra="transformers")
    try:
        api = hub.HfApi()
        url = api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=folder,
            allow_patterns=list(files),
            commit_message=message,
        )
    except errors.HFValidationError as error:
        raise ProbeError(f"{repo_id!r} is no name on the hub ({reason(error)}); write org/name") from error
    except errors.LocalTokenNotFoundError as error:
        raise ProbeError(_refused(repo_id, "there is no token")) from error
    except errors.OfflineModeIsEnabled as error:
        raise ProbeError(f"cannot push to {repo_id}: HF_HUB_OFFLINE is set; unset it for this command") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403, 404):  # the hub answers 404 for what a token may not see
            raise ProbeError(_refused(repo_id, f"the hub answered {status}")) from error
        raise ProbeError(f"cannot push to {repo_id}: {reason(error)}; try again later") from error
    except Exception as error:  # no network, a proxy in the way, a folder that cannot be read: each library has its own
        raise ProbeError(f"cannot push to {repo_id}: {reason(error)}; look at the network and try again") from error
    return str(url)


def _refused(repo_id: str, why: str) -> str:
    return (
        f"cannot push to {repo_id}: {why}; log in with `hf auth login` or set HF_TOKEN to a token that may write to "
        f"{repo_id.partition('/')[0]}"
    )
